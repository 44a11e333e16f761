"""A whole profile of a model: every size, degree and batch, with the processes that degrees above 1 need.

    with Members(setup, 4) as members:
        for wish in wishes(...):
            rows = members.measure(wish, effort)

The process that makes them leads every group; the others are started by it and wait on a pipe while
they are not needed, so that they do not disturb what is measured without them.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from executor import devices, pipelines, profiler
from executor.calibration import Wish
from executor.groups import GroupAborted, Groups, Member
from executor.pipelines import Pipeline
from executor.profiler import Effort, Link, Measurement, Size

START_TIMEOUT_S = 600.0
STOP_TIMEOUT_S = 10.0


class Failed(Exception):
    """One wish could not be measured; the message says why. The next one may well be."""


class Gone(Exception):
    """A member has died or never came up: nothing more can be measured with it."""


@dataclass(frozen=True, slots=True)
class Setup:
    """The model and where each member has it: the same device, or on CUDA one GPU after another."""

    folder: Path
    device: str
    dtype: str
    threads: int = 1
    attention: str = "sdpa"
    compile_mode: str | None = None

    def of_member(self, rank: int) -> Setup:
        """The same for another member."""
        if rank == 0 or self.device == "cpu":
            return self
        return replace(self, device=f"cuda:{int(self.device.partition(':')[2] or 0) + rank}")

    def load(self) -> Pipeline:
        """The model on its device. ModelError: it cannot be loaded."""
        torch.set_num_threads(self.threads)
        device = devices.find(self.device)
        dtype = pipelines.DTYPES[self.dtype]
        return pipelines.load(
            self.folder, device, dtype, attention=self.attention, compile_mode=self.compile_mode
        )


def wishes(
    sizes: Sequence[Size], degrees: Sequence[int], batches: Sequence[int], *, stages: bool = True
) -> Iterator[Wish]:
    """What makes a profile, the quickest sizes first; with `stages` the encoding and decoding, too."""
    if stages:
        yield Wish("encode", 0, 0, 1, 1)
    for size in sorted(sizes, key=lambda size: size[0] * size[1]):
        if stages:
            yield Wish("decode", *size, 1, 1)
        for degree in sorted(degrees):
            for batch in sorted(batches):
                yield Wish("step", *size, degree, batch)


class Members:
    """The members of all groups that are measured; this process is the first of them.

    Args:
        setup: of this process's own pipeline.
        pipeline: already loaded by it.
        count: how many processes in all, this one included.
    """

    def __init__(self, setup: Setup, pipeline: Pipeline, count: int = 1) -> None:
        self.pipeline = pipeline
        self.groups = Groups(pipeline.device)
        self._members = [Member(0, self.groups.store_address)]
        self._meetings = 0
        self._pipes: list[Connection] = []
        self._processes: list[BaseProcess] = []
        # Not forked: torch's threads, and CUDA, do not survive that.
        context = multiprocessing.get_context("spawn")
        for rank in range(1, count):
            here, there = context.Pipe()
            process = context.Process(target=_attend, args=(there, setup.of_member(rank)), daemon=True)
            process.start()
            there.close()
            self._pipes.append(here)
            self._processes.append(process)

    def __enter__(self) -> Self:
        try:
            for rank, pipe in enumerate(self._pipes, 1):
                self._members.append(Member(rank, str(_answer(pipe, rank, START_TIMEOUT_S))))
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # First, for what is interrupted in the middle of a step: its other members stop waiting.
        self.groups.close()
        self._stop()

    def measure(self, wish: Wish, effort: Effort) -> Measurement:
        """Measure one entry with as many members as its degree.

        Raises:
            Failed: it does not fit into memory, or a member has failed at it.
            Gone: a member is dead.
        """
        members = tuple(self._members[: wish.degree])
        self._meetings += 1
        meeting = str(self._meetings)
        pipes = list(enumerate(self._pipes[: wish.degree - 1], 1))
        for rank, pipe in pipes:
            try:
                pipe.send((members, meeting, wish, effort))
            except OSError as error:
                raise Gone(f"the process of member {rank} is gone: {error}") from None
        try:
            row = _measure(self.pipeline, self.groups, members, meeting, wish, effort)
        except Exception as error:
            reasons = [_reason(error)] if not isinstance(error, GroupAborted) else []
            reasons += [str(said) for rank, pipe in pipes if (said := _answer(pipe, rank))]
            raise Failed("; ".join(dict.fromkeys(reasons)) or str(error)) from error
        for rank, pipe in pipes:
            if said := _answer(pipe, rank):
                raise Failed(f"member {rank}: {said}")
        return row

    def derive(self, wish: Wish, link: Link, effort: Effort) -> Measurement:
        """Derive one entry from what a single member computes. Raises Failed."""
        try:
            (row,) = profiler.measure_shares(
                self.pipeline,
                self.groups,
                wish.degree,
                [(wish.width, wish.height)],
                [wish.batch],
                link,
                effort,
            )
        except Exception as error:
            raise Failed(_reason(error)) from error
        finally:
            _free(self.pipeline)
        return row

    def _stop(self) -> None:
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.send(None)
        for process in self._processes:
            process.join(STOP_TIMEOUT_S)
            if process.is_alive():
                process.kill()


def _measure(
    pipeline: Pipeline,
    groups: Groups,
    members: Sequence[Member],
    meeting: str,
    wish: Wish,
    effort: Effort,
) -> Measurement:
    """One member's part of a measurement."""
    size = (wish.width, wish.height)
    try:
        match wish.kind:
            case "encode":
                return profiler.measure_encoding(pipeline, effort)
            case "decode":
                return profiler.measure_decoding(pipeline, [size], effort)[0]
            case "step":
                group = groups.get(1, members, meeting)
                try:
                    return profiler.measure_steps(pipeline, group, [size], [wish.batch], effort)[0]
                except Exception as error:
                    # The others must not wait for this member.
                    group.abort(_reason(error))
                    raise
    finally:
        _free(pipeline)


def _free(pipeline: Pipeline) -> None:
    """Give cached memory back, so that one wish's peak does not stand in the way of the next one."""
    if pipeline.device.type == "cuda":
        torch.cuda.empty_cache()


def _reason(error: Exception) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        return "out of GPU memory"
    return str(error) if isinstance(error, ValueError | GroupAborted) else f"{type(error).__name__}: {error}"


def _attend(pipe: Connection, setup: Setup) -> None:
    """The life of a member: load, say where it meets others, measure until told to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who leads
    try:
        pipeline = setup.load()
        groups = Groups(pipeline.device)
    except Exception as error:
        pipe.send(Gone(_reason(error)))
        return
    pipe.send(groups.store_address)
    with contextlib.suppress(EOFError):
        while (job := pipe.recv()) is not None:
            members, meeting, wish, effort = job
            said = ""
            try:
                _measure(pipeline, groups, members, meeting, wish, effort)
            except Exception as error:
                said = _reason(error)
            pipe.send(said)
    groups.close()


def _answer(pipe: Connection, rank: int, timeout_s: float | None = None) -> object:
    """What a member says; Gone where it is dead, silent for `timeout_s`, or could not load the model."""
    try:
        if not pipe.poll(timeout_s):
            raise Gone(f"member {rank} was not ready in {timeout_s:g} s")
        answer = pipe.recv()
    except (EOFError, OSError):
        raise Gone(f"the process of member {rank} is gone") from None
    if isinstance(answer, Gone):
        raise Gone(f"member {rank}: {answer}")
    return answer


Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class Skipped:
    """A wish that could not be measured, and why."""

    wish: Wish
    why: str


def survey(
    members: Members,
    wanted: Sequence[Wish],
    effort: Effort,
    link: Link | None = None,
    progress: Progress = lambda _done, _all, _now: None,
) -> Iterator[Measurement | Skipped]:
    """Measure all that is wanted, one by one; degrees above 1 are derived where a `link` is given.

    Raises Gone where a member is lost for good.
    """
    for done, wish in enumerate(wanted):
        degree = f", degree {wish.degree}" if wish.kind == "step" else ""
        progress(done, len(wanted), wish.title + degree)
        try:
            if link is not None and wish.degree > 1:
                yield members.derive(wish, link, effort)
            else:
                yield members.measure(wish, effort)
        except Failed as error:
            yield Skipped(wish, str(error))
    progress(len(wanted), len(wanted), "")
