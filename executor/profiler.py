"""Measure how long a model's steps, encoding and decoding take on this device."""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from executor.groups import Group
from executor.image import ImageSpec
from executor.pipelines import Pipeline

Kind = Literal["step", "encode", "decode"]
Size = tuple[int, int]

_PROMPT = "a red house under a yellow sun"
_STEPS = 4
_FEWEST, _MOST = 3, 20
_REPLY_TIMEOUT_S = 60.0


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
    """

    kind: Kind
    width: int
    height: int
    degree: int
    batch: int
    seconds: float
    cv: float


def measure_steps(
    pipeline: Pipeline,
    group: Group,
    sizes: Sequence[Size],
    batches: Sequence[int] = (1,),
    budget_s: float = 1.0,
) -> list[Measurement]:
    """Time denoising steps at the degree of `group`; every member calls it with the same arguments.

    Args:
        sizes: width and height in pixels.
        batches: how many requests are stepped together.
        budget_s: about how long to measure each size and batch; each is measured 3 to 20 times.

    Raises:
        GroupAborted: a member failed or was lost.
        ValueError: the model cannot draw one of the sizes.
    """
    rows = []
    condition = pipeline.encode(_image())
    for width, height in sizes:
        image = _image(width, height)
        pipeline.check(image)
        for batch in batches:
            states = [pipeline.start(replace(image, seed=seed), condition) for seed in range(batch)]
            seconds = _time(
                lambda states=states: pipeline.step(states, group),  # type: ignore[misc]
                pipeline.device,
                lambda first, key=f"{width}x{height}x{batch}": _agree(group, key, first, budget_s),  # type: ignore[misc]
            )
            rows.append(_row("step", width, height, group.degree, batch, seconds))
    return rows


def measure_encoding(pipeline: Pipeline, budget_s: float = 1.0) -> Measurement:
    """Time the encoding of a prompt, with the negative one where guidance has two passes, on this device
    alone."""
    image = _image()
    seconds = _time(lambda: pipeline.encode(image), pipeline.device, lambda first: _repeats(first, budget_s))
    return _row("encode", 0, 0, 1, 1, seconds)


def measure_decoding(pipeline: Pipeline, sizes: Sequence[Size], budget_s: float = 1.0) -> list[Measurement]:
    """Time the decoding of latents to PNGs on this device alone, for each size in pixels."""
    rows = []
    condition = pipeline.encode(_image())
    for width, height in sizes:
        state = pipeline.start(_image(width, height), condition)
        seconds = _time(
            lambda state=state: pipeline.decode(state).save(io.BytesIO(), "PNG"),  # type: ignore[misc]
            pipeline.device,
            lambda first: _repeats(first, budget_s),
        )
        rows.append(_row("decode", width, height, 1, 1, seconds))
    return rows


def _image(width: int = 512, height: int = 512) -> ImageSpec:
    """What is drawn to measure; encoding does not ask for the size."""
    return ImageSpec(_PROMPT, width, height, _STEPS, seed=0)


def _time(work: Callable[[], object], device: torch.device, repeats: Callable[[float], int]) -> list[float]:
    """Durations of repeated work. The first two runs warm up; the second tells how often to repeat."""
    _once(work, device)
    return [_once(work, device) for _ in range(repeats(_once(work, device)))]


def _once(work: Callable[[], object], device: torch.device) -> float:
    begin = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def _repeats(first: float, budget_s: float) -> int:
    return min(max(int(budget_s / first), _FEWEST), _MOST)


def _agree(group: Group, key: str, first: float, budget_s: float) -> int:
    """How often all members repeat: the leader's word, for they must not disagree."""
    if group.degree == 1:
        return _repeats(first, budget_s)
    if group.leads:
        group.publish(f"repeats/{key}", str(_repeats(first, budget_s)).encode())
    return int(group.read(f"repeats/{key}", _REPLY_TIMEOUT_S))


def _row(kind: Kind, width: int, height: int, degree: int, batch: int, seconds: list[float]) -> Measurement:
    spread = statistics.pstdev(seconds) / statistics.fmean(seconds)
    return Measurement(kind, width, height, degree, batch, statistics.median(seconds), spread)
