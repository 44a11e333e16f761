"""Measure how long a model's steps, encoding and decoding take on this device."""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from executor.groups import Group, Groups
from executor.image import ImageSpec
from executor.latents import State
from executor.pipelines import Pipeline
from executor.roles import ENCODE

Kind = Literal["step", "encode", "decode"]
Size = tuple[int, int]

_PROMPT = "a red house under a yellow sun"
_STEPS = 4
_SMALL = 256
_REPLY_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Effort:
    """How thoroughly to measure: after `warm_up` runs that do not count, as many as fit into `budget_s`,
    at least `fewest` and at most `most`."""

    budget_s: float = 1.0
    warm_up: int = 2
    fewest: int = 3
    most: int = 20

    def repeats(self, once_s: float) -> int:
        """How often to repeat what takes `once_s` seconds."""
        return min(max(int(self.budget_s / once_s), self.fewest), self.most)


USUAL = Effort()


@dataclass(frozen=True)
class Measurement:
    """One entry of a profile.

    Attributes:
        kind: a denoising step, the encoding of a prompt (width and height are 0), or the decoding of a
            latent to a PNG.
        width, height: in pixels.
        degree: members that shared the step.
        batch: requests stepped together.
        seconds: the median.
        cv: standard deviation over mean of the repeats.
        repeats: how many there were; 0: not known.
        peak_bytes: the most GPU memory in use meanwhile, on this member; 0: not known.
        derivation: where the seconds are not what was measured: what was, and how they follow.
    """

    kind: Kind
    width: int
    height: int
    degree: int
    batch: int
    seconds: float
    cv: float
    repeats: int = 0
    peak_bytes: int = 0
    derivation: str = ""


@dataclass(frozen=True, slots=True)
class Link:
    """What would join the members of a group: bytes per second each way, and seconds that each collective
    takes besides."""

    name: str
    bandwidth: float
    latency: float


def measure_steps(
    pipeline: Pipeline,
    group: Group,
    sizes: Sequence[Size],
    batches: Sequence[int] = (1,),
    effort: Effort = USUAL,
) -> list[Measurement]:
    """Time denoising steps at the degree of `group`; every member calls it with the same arguments.

    Args:
        sizes: width and height in pixels.
        batches: how many requests are stepped together.
        effort: spent on each size and batch.

    Raises:
        GroupAborted: a member failed or was lost.
        ValueError: the model cannot draw one of the sizes.
    """
    rows = []
    for size in sizes:
        for batch in batches:
            states = _states(pipeline, size, batch)
            sample = _time(
                lambda states=states: pipeline.step(states, group),  # type: ignore[misc]
                pipeline.device,
                effort,
                lambda once, key=f"{size}x{batch}": _agree(group, key, once, effort),  # type: ignore[misc]
            )
            rows.append(sample.row("step", size, group.degree, batch))
    return rows


def measure_shares(
    pipeline: Pipeline,
    groups: Groups,
    degree: int,
    sizes: Sequence[Size],
    batches: Sequence[int],
    link: Link,
    effort: Effort = USUAL,
) -> list[Measurement]:
    """Derive step times at `degree` from what one member computes, without the others.

    Each member in turn runs its share of a step once, with the collectives replaced by copies; the slowest
    is measured, and what it would have sent is added by the link. Raises ValueError as `measure_steps`.
    """
    rows = []
    for size in sizes:
        for batch in batches:
            states = _states(pipeline, size, batch)
            rank = max(range(degree), key=lambda rank: _share_once(pipeline, groups, degree, rank, states))
            share = groups.stand_in(degree, rank)
            try:
                pipeline.step(states, share)
                traffic = replace(share.traffic)
                sample = _time(
                    lambda states=states, share=share: pipeline.step(states, share),  # type: ignore[misc]
                    pipeline.device,
                    effort,
                    effort.repeats,
                )
            finally:
                share.close()
            row = sample.row("step", size, degree, batch)
            sent = traffic.collectives * link.latency + traffic.nbytes / link.bandwidth
            why = (
                f"member {rank}, the slowest of {degree}, alone: {1000 * row.seconds:.2f} ms; and by the "
                f"model of {link.name} {1000 * sent:.2f} ms: {traffic.collectives} collectives x "
                f"{1e6 * link.latency:g} us and {traffic.nbytes / 1e6:.2f} MB / {link.bandwidth / 1e9:g} GB/s"
            )
            rows.append(replace(row, seconds=row.seconds + sent, derivation=why))
    return rows


def measure_encoding(pipeline: Pipeline, effort: Effort = USUAL) -> Measurement:
    """Time the encoding of a prompt, with the negative one where guidance has two passes, on this device
    alone."""
    image = _image()
    sample = _time(lambda: pipeline.encode(image), pipeline.device, effort, effort.repeats)
    return sample.row("encode", (0, 0), 1, 1)


def measure_decoding(pipeline: Pipeline, sizes: Sequence[Size], effort: Effort = USUAL) -> list[Measurement]:
    """Time the decoding of latents to PNGs on this device alone, for each size in pixels."""
    rows = []
    for size in sizes:
        (state,) = _states(pipeline, size, 1)
        sample = _time(
            lambda state=state: pipeline.decode(state).save(io.BytesIO(), "PNG"),  # type: ignore[misc]
            pipeline.device,
            effort,
            effort.repeats,
        )
        rows.append(sample.row("decode", size, 1, 1))
    return rows


def warm_up(pipeline: Pipeline, group: Group, size: Size | None = None, batch: int = 1) -> list[State]:
    """One step of a batch of pictures; returns their states. By default it is a single small picture, of a
    size that all executors with this model choose.

    It makes what the first step of a group makes: communicators and the split that attention needs.
    """
    multiple, most = pipeline.limits.size_multiple, pipeline.limits.max_side
    side = min(-(-_SMALL // multiple) * multiple, most)
    states = pipeline.step(_states(pipeline, size or (side, side), batch), group)
    if pipeline.device.type == "cuda":
        torch.cuda.synchronize(pipeline.device)
        group.check()
    return states


@dataclass(frozen=True)
class _Sample:
    """Durations of repeated work, and the most GPU memory in use meanwhile."""

    seconds: list[float]
    peak_bytes: int

    def row(self, kind: Kind, size: Size, degree: int, batch: int) -> Measurement:
        return Measurement(
            kind,
            *size,
            degree,
            batch,
            seconds=statistics.median(self.seconds),
            cv=statistics.pstdev(self.seconds) / statistics.fmean(self.seconds),
            repeats=len(self.seconds),
            peak_bytes=self.peak_bytes,
        )


def _image(width: int = 512, height: int = 512) -> ImageSpec:
    """What is drawn to measure; encoding does not ask for the size."""
    return ImageSpec(_PROMPT, width, height, _STEPS, seed=0)


def _states(pipeline: Pipeline, size: Size, batch: int) -> list[State]:
    image = _image(*size)
    pipeline.check(image)
    condition = pipeline.encode(image) if ENCODE in pipeline.roles else pipeline.blank(image)
    return [pipeline.start(replace(image, seed=seed), condition) for seed in range(batch)]


def _time(
    work: Callable[[], object], device: torch.device, effort: Effort, repeats: Callable[[float], int]
) -> _Sample:
    """Repeat work; the last of the runs that warm up tells how often."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    once = [_once(work, device) for _ in range(effort.warm_up)][-1]
    seconds = [_once(work, device) for _ in range(repeats(once))]
    return _Sample(seconds, torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0)


def _once(work: Callable[[], object], device: torch.device) -> float:
    begin = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def _share_once(pipeline: Pipeline, groups: Groups, degree: int, rank: int, states: list[State]) -> float:
    """Seconds of one member's share of a step, the second time."""
    share = groups.stand_in(degree, rank)
    try:
        return [_once(lambda: pipeline.step(states, share), pipeline.device) for _ in range(2)][-1]
    finally:
        share.close()


def _agree(group: Group, key: str, once: float, effort: Effort) -> int:
    """How often all members repeat: the leader's word, for they must not disagree."""
    if group.degree == 1:
        return effort.repeats(once)
    if group.leads:
        group.publish(f"repeats/{key}", str(effort.repeats(once)).encode())
    return int(group.read(f"repeats/{key}", _REPLY_TIMEOUT_S))
