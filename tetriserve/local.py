"""A whole cluster on this machine: one scheduler and some executors as child processes.

    with LocalCluster(Path("out"), executors=2) as cluster:
        cluster.wait_ready()
        with Client(cluster.target) as client: ...

Leaving the block stops all of them, however it is left; should this process be killed, Linux ends
them too.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from tetriserve.client import Client
from tetriserve.errors import Unavailable

STOP_GRACE_S = 10.0
SETTLE_S = 2.5
TAIL_LINES = 15
_PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


class ChildDied(Exception):
    """A process of the cluster ended before it was asked to; the message has the end of its log."""


class NotReady(Exception):
    """The cluster could not work in time; the message says what it waited for."""


@dataclass(slots=True)
class Child:
    """A process of the cluster."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def log_tail(self) -> str:
        """The last lines that it wrote."""
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join(lines[-TAIL_LINES:])

    def obituary(self) -> str:
        """How it ended."""
        status = self.process.returncode
        return f"{self.name} ended with status {status}; its log {self.log} ends with:\n{self.log_tail()}"


@dataclass
class LocalCluster:
    """A scheduler on a free port of loopback, and `executors` that have joined it.

    Logs go to `folder`/logs, the scheduler's data to `folder`/data, which starts empty. `options`
    are more words for every executor's command line, such as ("--model", PATH), and `each` for one
    executor's; `executor` is what Python runs as one.
    """

    folder: Path
    executors: int
    policy: str = "cp-sat"
    device: str = "cpu"
    options: Sequence[str] = ()
    executor: Sequence[str] = ("-m", "executor")
    scheduler: Sequence[str] = ("-m", "scheduler")
    scheduler_options: Sequence[str] = ()
    each: Sequence[Sequence[str]] = ()
    target: str = field(init=False, default="")
    children: list[Child] = field(init=False, default_factory=list)

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _start(self) -> None:
        self.target = f"127.0.0.1:{_free_port()}"
        data, logs = self.folder / "data", self.folder / "logs"
        # What an earlier run had accepted would be taken up again.
        shutil.rmtree(data, ignore_errors=True)
        logs.mkdir(parents=True, exist_ok=True)
        words = ["--listen", self.target, "--policy", self.policy, "--data-dir", str(data)]
        words += ["--expect", str(self.executors), *self.scheduler_options]
        self._spawn("scheduler", [*self.scheduler, *words])
        for i in range(self.executors):
            device = self.device if self.device == "cpu" else f"{self.device}:{i}"
            own = self.each[i] if i < len(self.each) else ()
            words = ["--scheduler", self.target, "--device", device, *self.options, *own]
            self._spawn(f"executor-{i}", [*self.executor, *words])

    def wait_ready(self, *, timeout: float = 180.0, progress: Callable[[str], None] | None = None) -> None:
        """Wait until requests can run, telling `progress` what is waited for.

        Raises ChildDied, or NotReady after `timeout` seconds.
        """
        gives_up_at = time.monotonic() + timeout
        words = ""
        with Client(self.target, timeout=5, patience=0) as client:
            while time.monotonic() < gives_up_at:
                self.check()
                words = self._missing(client)
                if progress:
                    progress(words)
                if not words:
                    return
                time.sleep(0.2)
        raise NotReady(f"not ready after {timeout:.0f} s: still {words}; see {self.folder / 'logs'}")

    def _missing(self, client: Client) -> str:
        try:
            cluster = client.cluster()
        except Unavailable:
            return "waiting for the scheduler to listen"
        if len(cluster.executors) < self.executors:
            joined = f"{len(cluster.executors)} of {self.executors} joined"
            return f"waiting for executors to load the model: {joined}"
        return "" if cluster.ready else "measuring step times"

    def check(self) -> None:
        """Raises ChildDied where a process has ended."""
        if not self._dead():
            return
        # Who ends first need not be the one to blame: without a scheduler executors may end, too.
        time.sleep(SETTLE_S)
        dead = self._dead()
        failed = [child for child in dead if child.process.returncode]
        raise ChildDied("\n".join(child.obituary() for child in failed or dead))

    def _dead(self) -> list[Child]:
        return [child for child in self.children if child.process.poll() is not None]

    def stop(self) -> None:
        """Ask every process to stop, executors first so that they can hand back their work; then make it."""
        try:
            for children in (self.children[1:], self.children[:1]):
                gives_up_at = time.monotonic() + STOP_GRACE_S
                for child in children:
                    child.process.terminate()
                for child in children:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        child.process.wait(max(0.0, gives_up_at - time.monotonic()))
        finally:  # also where somebody loses patience and interrupts
            for child in self.children:
                child.process.kill()
                child.process.wait()

    def _spawn(self, name: str, words: Sequence[str]) -> None:
        path = self.folder / "logs" / f"{name}.log"
        with path.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
                # Ctrl-C is for this process, which then stops the others in order.
                start_new_session=True,
                preexec_fn=_end_with_parent if _libc else None,
            )
        self.children.append(Child(name, process, path))


def _end_with_parent() -> None:
    """In the child, before it starts: have Linux send it SIGTERM when its parent is gone."""
    if _libc:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
