"""What native code prints goes to standard error: HiGHS, of solutions that it mends, whatever it is told."""

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def printing_aside() -> Iterator[None]:
    """Standard output stays our own, so that JSON there can be read."""
    native = ctypes.CDLL(None)
    if sys.stdout is not None:
        sys.stdout.flush()
    native.fflush(None)
    try:
        output = os.dup(1)
    except OSError:  # there is none
        yield
        return
    try:
        with contextlib.suppress(OSError):  # nor standard error
            os.dup2(2, 1)
        yield
    finally:
        native.fflush(None)
        os.dup2(output, 1)
        os.close(output)
