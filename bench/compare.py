"""Policies side by side over seeds: means with intervals, and differences seed by seed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.intervals import Estimate, estimate, paired
from bench.trials import BOUND, Record


@dataclass(frozen=True, slots=True)
class Line:
    """One policy (or the bound) in a comparison; None where a figure makes no sense.

    `sar` is by weight, NaN without deadlines; in `open` runs it is a bound that is not proven. `gain` is the
    paired difference of SAR to the first policy. `gpu_seconds_per_on_time` is by weight as well.
    """

    policy: str
    seeds: int
    sar: Estimate
    gain: Estimate | None
    gpu_seconds_per_on_time: Estimate | None
    latency_p50_s: Estimate | None
    latency_p99_s: Estimate | None
    late_latency_s: Estimate | None
    switches: Estimate | None
    decision_p99_ms: float | None
    open: int = 0


def lines(records: Sequence[Record]) -> list[Line]:
    """One line a policy, in the order of the records; all of one cell, with the same seeds."""
    policies = list(dict.fromkeys(record["policy"] for record in records))
    by_policy = {
        policy: sorted((r for r in records if r["policy"] == policy), key=lambda r: int(r["seed"]))
        for policy in policies
    }
    first = [_sar(record) for record in by_policy[policies[0]]]
    return [_line(policy, by_policy[policy], first, policy == policies[0]) for policy in policies]


def _line(policy: str, records: Sequence[Record], first: Sequence[float], is_first: bool) -> Line:
    sars = [_sar(record) for record in records]

    def figure(*path: str) -> Estimate | None:
        values: list[float] = []
        for record in records:
            value: Any = record
            for name in path:
                value = value[name]
            if value is not None:
                values.append(value)
        return estimate(values) if values else None

    known = policy != BOUND
    return Line(
        policy=policy,
        seeds=len(records),
        sar=estimate(sars),
        gain=None if is_first else paired(sars, first),
        gpu_seconds_per_on_time=figure("gpu_seconds_per_on_time_weighted") if known else None,
        latency_p50_s=figure("latency_s", "p50") if known else None,
        latency_p99_s=figure("latency_s", "p99") if known else None,
        late_latency_s=figure("late_latency_s", "mean") if known else None,
        switches=figure("switches") if known else None,
        decision_p99_ms=max(r["decision_ms"]["p99"] for r in records) if known else None,
        open=0 if known else sum(not record["proven"] for record in records),
    )


def _sar(record: Record) -> float:
    return math.nan if record["sar_weighted"] is None else float(record["sar_weighted"])


HEADER = (
    "policy",
    "SAR, %",
    "to the first",
    "GPU-s per hit",
    "p50, s",
    "p99, s",
    "late, s",
    "switches",
    "p99, ms",
)


LEGEND = (
    "SAR by weight, and its difference to the first policy's in points; GPU-seconds per request on time, by "
    "weight too; latency; mean latency of the late; changes of group; time of a decision by the clock, with "
    "whatever else the machine was doing. Open: in so many runs the bound's solver ran out of time."
)


def cells(line: Line) -> tuple[str, ...]:
    """A line as text, under HEADER."""
    return (
        line.policy,
        show(line.sar, 100, 1) + (f", {line.open} open" if line.open else ""),
        show(line.gain, 100, 1, sign=True),
        show(line.gpu_seconds_per_on_time, 1, 1),
        show(line.latency_p50_s, 1, 2),
        show(line.latency_p99_s, 1, 1),
        show(line.late_latency_s, 1, 1),
        show(line.switches, 1, 0),
        "-" if line.decision_p99_ms is None else f"{line.decision_p99_ms:.1f}",
    )


def show(value: Estimate | None, factor: float, digits: int, sign: bool = False) -> str:
    """An estimate as text, such as "76.4 ±1.2"."""
    if value is None or math.isnan(value.mean):
        return "-"
    mean = f"{factor * value.mean:{'+' if sign else ''}.{digits}f}"
    return mean if value.half_width == float("inf") else f"{mean} ±{factor * value.half_width:.{digits}f}"
