"""A recorded run of the real service through the simulator: does it decide and end the same?

The recording is what `tetriserve timeline --json` prints: arrivals, and what ran where and when.
"""

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import mean, median
from typing import Any

from bench.simulator import Arrival, Outcomes, Simulation
from scheduler.config import Config
from scheduler.policies import resolve
from scheduler.problem import Stage
from scheduler.profile import Profile, StepTime
from scheduler.tracking import Span, Submission


@dataclass(frozen=True, slots=True)
class Recorded:
    """A request of a recording, done or `dropped`; times in seconds from the first arrival."""

    arrival: Arrival
    spans: tuple[Span, ...]
    finished_at: float
    dropped: bool = False


def load(path: Path) -> list[Recorded]:
    """The requests of a recording that were completed or dropped, by arrival.

    ValueError says what is wrong with it.
    """
    kept = (Stage.DONE.value, Stage.DROPPED.value)
    try:
        rows = [row for row in json.loads(path.read_text()) if row["stage"] in kept]
        if not any(row["stage"] == Stage.DONE.value for row in rows):
            raise ValueError("no request was completed")
        start = min(_seconds(row["submitted_at"]) for row in rows)
        found = [_recorded(row, start) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not what `tetriserve timeline --json` prints: {error!r}") from None
    return sorted(found, key=lambda r: r.arrival.at)


def _recorded(row: dict[str, Any], start: float) -> Recorded:
    submission = Submission(
        row["id"],
        row["width"],
        row["height"],
        row["steps"],
        row["deadline_s"],
        row["weight"],
        {"drop": True, "run": False}.get(row["on_late"]),
    )
    spans = tuple(
        Span(
            Stage(span["stage"]),
            tuple(span["slots"]),
            span["first_step"],
            span["steps"],
            _seconds(span["begin"]) - start,
            _seconds(span["end"]) - start if span["end"] else math.nan,
            span.get("batch", 1),
        )
        for span in row["spans"]
    )
    arrival = Arrival(_seconds(row["submitted_at"]) - start, submission)
    dropped = row["stage"] == Stage.DROPPED.value
    return Recorded(arrival, spans, _seconds(row["finished_at"]) - start, dropped)


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()


def measured(recording: Sequence[Recorded]) -> Profile:
    """The median times of the recording's own orders, by size and degree.

    ValueError where no step ran at degree 1: a profile rests on that.
    """
    times: dict[tuple[str, int, int, int, int], list[float]] = defaultdict(list)
    for recorded in recording:
        s = recorded.arrival.submission
        for span in recorded.spans:
            seconds = span.end - span.begin
            if math.isnan(seconds) or seconds <= 0:
                continue
            if span.stage is Stage.DENOISING and span.steps:
                times["step", s.width, s.height, len(span.slots), span.batch].append(seconds / span.steps)
            elif span.stage is Stage.ENCODING:
                times["encode", 0, 0, 1, 1].append(seconds)
            elif span.stage is Stage.DECODING:
                times["decode", s.width, s.height, 1, 1].append(seconds)
    return Profile(
        StepTime(*key, median(seconds), source="recording") for key, seconds in sorted(times.items())
    )


def replay(
    recording: Sequence[Recorded],
    profile: Profile,
    policy: str,
    gpus: int,
    config: Config,
) -> Outcomes:
    """The same requests at the same times in the simulator."""
    arrivals = [recorded.arrival for recorded in recording]
    return Simulation(resolve(policy), profile, gpus, arrivals, config=config).run()


def compare(recording: Sequence[Recorded], outcomes: Outcomes) -> dict[str, Any]:
    """How near the simulated run comes to the recorded one.

    `same_verdict`: the share of requests that were on time, late or dropped in both. `same_degree`: the
    share of steps that ran at the recorded degree; `same_slots`: on the recorded GPUs as well. Latencies are
    compared request by request, of those done in both, if any: (simulated - recorded) / recorded.
    """
    simulated = {tracked.id: tracked for tracked in outcomes.requests}
    pairs = [(recorded, simulated[recorded.arrival.submission.id]) for recorded in recording]
    steps = same_degree = same_slots = same_verdict = 0
    errors: list[float] = []
    for recorded, tracked in pairs:
        real, virtual = _steps(recorded.spans), _steps(tracked.spans)
        steps += len(real)
        same_degree += sum(len(virtual.get(step, ())) == len(slots) for step, slots in real.items())
        same_slots += sum(virtual.get(step) == slots for step, slots in real.items())
        late = tracked.finished_at > tracked.deadline
        dropped = tracked.stage is Stage.DROPPED
        same_verdict += _verdict(recorded.dropped, _late(recorded)) == _verdict(dropped, late)
        if not recorded.dropped and not dropped:
            took = recorded.finished_at - recorded.arrival.at
            errors.append((tracked.finished_at - tracked.arrived_at - took) / took)
    real_end = max(recorded.finished_at for recorded in recording)
    return {
        "requests": len(pairs),
        "dropped_recorded": sum(recorded.dropped for recorded in recording),
        "dropped_simulated": sum(tracked.stage is Stage.DROPPED for _, tracked in pairs),
        "same_verdict": same_verdict / len(pairs),
        "same_degree": same_degree / steps,
        "same_slots": same_slots / steps,
        "latency_error_mean": mean(errors) if errors else None,
        "latency_error_median_abs": median(map(abs, errors)) if errors else None,
        "latency_error_max_abs": max(map(abs, errors), default=None),
        "makespan_error": (outcomes.ended_at - real_end) / real_end,
        "orders_recorded": sum(len(recorded.spans) for recorded in recording),
        "orders_simulated": sum(len(tracked.spans) for _, tracked in pairs),
    }


def _steps(spans: Sequence[Span]) -> dict[int, tuple[int, ...]]:
    """Where each denoising step ran."""
    return {
        span.first_step + n: span.slots
        for span in spans
        if span.stage is Stage.DENOISING
        for n in range(span.steps)
    }


def _verdict(dropped: bool, late: bool) -> str:
    # Who is dropped has no end to be late at.
    return "dropped" if dropped else "late" if late else "on time"


def _late(recorded: Recorded) -> bool:
    allowed = recorded.arrival.submission.deadline_s
    return allowed is not None and recorded.finished_at - recorded.arrival.at > allowed


def gpus_of(recording: Sequence[Recorded]) -> int:
    """As many GPUs as the recording shows at work."""
    return 1 + max(slot for recorded in recording for span in recorded.spans for slot in span.slots)
