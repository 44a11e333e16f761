"""Real processes that hold what an executor holds of the engine, for measurements and tests.

They are kept alive from job to job, so that imports are paid once. A crew has workers; a job is a
function sent to some of them, all at once, and each answers with what it returned or raised.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

from executor.groups import Group, GroupAborted, Groups, Member
from executor.latents import Store
from executor.pipelines import DTYPES, Pipeline, load

COLLECTIVE_TIMEOUT_S = 60.0
JOB_TIMEOUT_S = 100.0


class Worker:
    """What one process of the crew holds; the first argument of every function sent to it."""

    def __init__(self) -> None:
        self.groups = Groups(timeout_s=COLLECTIVE_TIMEOUT_S)
        self.store = Store()
        self.members: list[Member] = []
        self.slot = -1
        self._pipelines: dict[tuple[str, str], Pipeline] = {}

    def group(self, epoch: int, slots: list[int], meeting: str, **options: Any) -> Group:
        """The group of the crew's members in these slots."""
        return self.groups.get(epoch, [self.members[slot] for slot in slots], meeting, **options)

    def pipeline(self, folder: str, dtype: str = "float32") -> Pipeline:
        """A model, loaded once in each dtype."""
        if (folder, dtype) not in self._pipelines:
            self._pipelines[folder, dtype] = load(folder, dtype=DTYPES[dtype])
        return self._pipelines[folder, dtype]


class Failed(Exception):
    """A function raised in a worker; `kind` is the name of its exception."""

    def __init__(self, kind: str, text: str, lost: tuple[int, ...], trace: str) -> None:
        super().__init__(kind, text, lost, trace)
        self.kind, self.text, self.lost, self.trace = kind, text, lost, trace

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}\n{self.trace}"


Job = tuple[Callable[..., Any], tuple[Any, ...]]


class Crew:
    """`size` workers; worker i has slot i."""

    def __init__(self, size: int) -> None:
        # Forked from a process that has imported everything and started nothing.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["executor.pipelines", "executor.profiler"])
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        for _ in range(size):
            self._start()
        self._introduce()

    def __len__(self) -> int:
        return len(self._pipes)

    def run(self, jobs: Mapping[int, Job], check: bool = True) -> dict[int, Any]:
        """Run one function in each of these workers at the same time.

        Returns:
            What each returned; with `check` off, a Failed for each that raised or died.
        """
        for slot, job in jobs.items():
            self._pipes[slot].send(job)
        answers = {slot: self._answer(slot) for slot in jobs}
        if check:
            for answer in answers.values():
                if isinstance(answer, Failed):
                    raise answer
        return answers

    def all(
        self, slots: list[int], function: Callable[..., Any], *args: Any, check: bool = True
    ) -> list[Any]:
        """Run the same in several workers at the same time; results in the order of `slots`."""
        answers = self.run(dict.fromkeys(slots, (function, args)), check)
        return [answers[slot] for slot in slots]

    def replace(self, slot: int) -> None:
        """A new process in place of one that was killed, with a store of its own."""
        self._processes[slot].join(timeout=10)
        self._start(slot)
        self._introduce()

    def pid(self, slot: int) -> int:
        """The process of a worker."""
        pid: int = self._processes[slot].pid
        return pid

    def close(self) -> None:
        """Stop all workers."""
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.send(None)
        for process in self._processes:
            process.join(timeout=10)
            if process.is_alive():
                process.kill()

    def _start(self, slot: int | None = None) -> None:
        here, there = self._context.Pipe()
        process = self._context.Process(target=_work, args=(there,), daemon=True)
        process.start()
        there.close()
        if slot is None:
            self._pipes.append(here)
            self._processes.append(process)
        else:
            self._pipes[slot], self._processes[slot] = here, process

    def _introduce(self) -> None:
        slots = range(len(self._pipes))
        addresses = self.all([*slots], _store_address)
        members = [Member(slot, address) for slot, address in zip(slots, addresses, strict=True)]
        self.all([*slots], _meet_crew, members)

    def _answer(self, slot: int) -> Any:
        try:
            if not self._pipes[slot].poll(JOB_TIMEOUT_S):
                return Failed("Hung", f"worker {slot} gave no answer in {JOB_TIMEOUT_S:g} s", (), "")
            return self._pipes[slot].recv()
        except (EOFError, OSError) as error:
            return Failed("Died", f"worker {slot}: {error!r}", (), "")


def _store_address(worker: Worker) -> str:
    return worker.groups.store_address


def _meet_crew(worker: Worker, members: list[Member]) -> None:
    worker.members = members
    worker.slot = next(m.slot for m in members if m.store == worker.groups.store_address)


def _work(pipe: Connection) -> None:
    import torch

    torch.set_num_threads(1)
    # The one who pressed Ctrl-C is the test run, and it ends its crew.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    worker = Worker()
    with contextlib.suppress(EOFError):
        while (job := pipe.recv()) is not None:
            function, args = job
            try:
                answer = function(worker, *args)
            except Exception as error:
                lost = error.lost if isinstance(error, GroupAborted) else ()
                answer = Failed(type(error).__name__, str(error), lost, traceback.format_exc())
            pipe.send(answer)
    worker.groups.close()


def die(after_s: float) -> None:
    """Kill this process in a while, from a thread."""

    def kill() -> None:
        time.sleep(after_s)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
