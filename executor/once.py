"""Work that one executor of a host does while the others wait for its result."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tetriserve.logs import Logger

log = Logger("executor.once")


@contextmanager
def alone(lock: Path, doing: str) -> Iterator[None]:
    """Hold `lock`, a file that is made where it is missing; waits, and says so, while another holds it.

    The system frees the lock of a process that dies.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info(f"waiting while another executor is {doing}", lock=lock)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
