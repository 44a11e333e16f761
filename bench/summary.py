"""What a run comes to, as plain data for JSON and tables."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from bench.simulator import Arrival, Outcomes
from scheduler.problem import OPTIMAL, Decision, Stage
from scheduler.tracking import Submission, Tracked


def summary(outcomes: Outcomes, arrivals: Sequence[Arrival], gpus: int) -> dict[str, Any]:
    """Figures of one run.

    SAR (SLO attainment ratio): requests on time / requests with a deadline; the refused, dropped, failed and
    cancelled are not on time. Latencies are of completed requests. Everything but `decision_ms` is the
    same for the same inputs.
    """
    requests = outcomes.requests
    labels = {arrival.submission.id: arrival.label for arrival in arrivals}
    ends = Counter(tracked.stage.value for tracked in requests)
    latencies = sorted(t.finished_at - t.arrived_at for t in requests if t.stage is Stage.DONE)
    late = [t.finished_at - t.arrived_at for t in requests if t.stage is Stage.DONE and t.late]
    hits = sum(map(on_time, requests))
    share, weighted = (sar(requests, outcomes.refused, weighted=by) for by in (False, True))
    tally = outcomes.tally
    cost = tally.busy_seconds / hits if hits else None
    span = outcomes.ended_at
    milliseconds = sorted(1000 * seconds for seconds in outcomes.decision_seconds)
    figures: dict[str, Any] = {
        "requests": len(requests) + len(outcomes.refused),
        "on_time": hits,
        "sar": share,
        "sar_weighted": weighted,
        "sar_by_size": _sar_by(requests, outcomes.refused, lambda s: f"{s.width}x{s.height}"),
        "ended": dict(sorted(ends.items())),
        "latency_s": {"mean": _mean(latencies), **quantiles(latencies, (50, 95, 99))},
        "late_latency_s": {"mean": _mean(late)},
        "ended_at_s": span,
        "gpu_seconds": tally.busy_seconds,
        "gpu_seconds_per_on_time": cost,
        # Each on time counts its weight over the mean weight.
        "gpu_seconds_per_on_time_weighted": cost * share / weighted if cost and share and weighted else None,
        "gpu_utilisation": tally.busy_seconds / (gpus * span) if span else 0.0,
        "switches": tally.switches,
        "requests_per_step": sum(map(len, tally.steps_run.values())) / tally.batches
        if tally.batches
        else None,
        "executors_lost": tally.losses,
        "decisions": len(outcomes.decisions),
        "decision_ms": {
            **quantiles(milliseconds, (50, 99)),
            "max": milliseconds[-1] if milliseconds else None,
        },
        "decision_sources": dict(sorted(Counter(d.source for d in outcomes.decisions).items())),
        "solver_statuses": dict(sorted(Counter(d.status for d in outcomes.decisions if d.status).items())),
        "gap": _gap(outcomes.decisions),
        "fallbacks": sum(map(_fell_back, outcomes.decisions)),
        "rejected": outcomes.rejected,
    }
    if outcomes.refused or any(tracked.promised for tracked in requests):
        figures["refused"] = len(outcomes.refused)
        figures["promised"] = sum(tracked.promised for tracked in requests)
        figures["promises_broken"] = sum(tracked.promised and not on_time(tracked) for tracked in requests)
    if any(labels.values()):
        figures["sar_by_class"] = _sar_by(requests, outcomes.refused, lambda s: labels[s.id])
    return figures


def latency_percentiles(outcomes: Outcomes) -> list[float]:
    """The 0th to 100th percentile of the latency of completed requests, in seconds; empty: there is none."""
    latencies = sorted(t.finished_at - t.arrived_at for t in outcomes.requests if t.stage is Stage.DONE)
    return [latencies[round(p / 100 * (len(latencies) - 1))] for p in range(101)] if latencies else []


def on_time(tracked: Tracked) -> bool:
    """Whether the request is done and met its deadline."""
    return tracked.stage is Stage.DONE and not tracked.late and tracked.deadline < math.inf


def sar(
    requests: Iterable[Tracked], refused: Iterable[Submission] = (), weighted: bool = False
) -> float | None:
    """Share of the requests with a deadline that met it, by number or by weight; None: there are none.

    Those that were refused count as late.
    """
    met = 0.0
    total = sum(s.weight if weighted else 1.0 for s in refused if s.deadline_s is not None)
    for tracked in requests:
        if tracked.deadline < math.inf:
            weight = tracked.submission.weight if weighted else 1.0
            total += weight
            met += weight * on_time(tracked)
    return met / total if total else None


def quantiles(ascending: Sequence[float], percents: Iterable[int]) -> dict[str, float | None]:
    """Nearest-rank percentiles by name, such as "p50"; None where there is no value."""
    return {
        f"p{p}": ascending[max(0, math.ceil(p / 100 * len(ascending)) - 1)] if ascending else None
        for p in percents
    }


def _sar_by(
    requests: Iterable[Tracked], refused: Iterable[Submission], key: Callable[[Submission], str]
) -> dict[str, float | None]:
    groups: dict[str, tuple[list[Tracked], list[Submission]]] = defaultdict(lambda: ([], []))
    for tracked in requests:
        groups[key(tracked.submission)][0].append(tracked)
    for submission in refused:
        groups[key(submission)][1].append(submission)
    return {name: sar(*groups[name]) for name in sorted(groups, key=lambda n: (len(n), n))}


def _fell_back(decision: Decision) -> bool:
    """Whether a solver was asked, and the heuristic's plan was taken without proof that it is best."""
    asked = decision.solve_s > 0
    # With several nodes the status is the least certain one: nothing to give where no other is left open.
    proven = decision.status in (OPTIMAL, "nothing to give")
    return asked and decision.source == "heuristic" and not proven


def _gap(decisions: Iterable[Decision]) -> dict[str, float | None]:
    """How far plans were from their bounds: requests a plan, and GPU-seconds as a share of all planned."""
    known = [d for d in decisions if not math.isnan(d.gap + d.gpu_seconds_gap)]
    planned = sum(d.gpu_seconds for d in known)
    return {
        "requests": _mean([d.gap for d in known]),
        "gpu_seconds": sum(d.gpu_seconds_gap for d in known) / planned if planned else None,
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
