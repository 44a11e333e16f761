"""How long decisions take, by policy and by size of the problem; model building and solving apart."""

import contextlib
import gc
import json
import math
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.moments import at_random, simulated
from bench.runs import DEFAULT_PROFILE, profile
from bench.summary import quantiles
from scheduler.policies import resolve
from scheduler.problem import Decision, Plan, Policy, Problem

POLICIES = ("edf", "cp-sat", "ilp", "tetriserve")
NODE_SIZE = 8


@dataclass(frozen=True, slots=True)
class Case:
    """Problems of one kind: `requests` outstanding on `nodes` nodes of 8 GPUs.

    `source`: simulated (what the core asks for while so many are outstanding) or random (all nodes at once).
    """

    requests: int
    nodes: int
    source: str
    target_ms: float | None = None


SIMULATED, RANDOM = "simulated", "random"
CASES = (
    *(Case(n, 1, source) for n in (1, 5, 10, 20) for source in (SIMULATED, RANDOM)),
    *(Case(50, 1, source, 20.0) for source in (SIMULATED, RANDOM)),
    *(Case(n, 1, source) for n in (100, 300) for source in (SIMULATED, RANDOM)),
    *(Case(300, 8, source) for source in (SIMULATED, RANDOM)),
    *(Case(5000, 128, source, 50.0) for source in (SIMULATED, RANDOM)),
)
QUICK_CASES = (Case(5, 1, SIMULATED), Case(5, 1, RANDOM), Case(20, 2, SIMULATED), Case(20, 2, RANDOM))
Line = dict[str, Any]


def measure(
    policies: Sequence[str],
    cases: Iterable[Case],
    samples: int,
    budget_s: float,
    seed: int = 0,
    progress: Callable[[Case], None] = lambda _case: None,
) -> list[Line]:
    """One line a case and policy; all policies decide on the same problems."""
    times = profile(DEFAULT_PROFILE)
    lines = []
    for case in cases:
        progress(case)
        core: list[float] = []
        if case.source == SIMULATED:
            problems, core = simulated(times, case.requests, case.nodes, NODE_SIZE, samples, seed)
        else:
            count = samples if case.nodes == 1 else max(1, samples // 10)
            problems = [
                at_random(times, case.requests, case.nodes, NODE_SIZE, seed + number)
                for number in range(count)
            ]
        # A server holds one such problem at a time, not hundreds for the garbage collector to look at.
        gc.collect()
        gc.freeze()
        for name in policies:
            policy = resolve(name)
            # Imports and the caches of step times.
            with contextlib.suppress(Exception):
                policy(problems[0], budget_s)
            lines.append(_line(name, case, policy, problems, core, budget_s))
        gc.unfreeze()
    return lines


def _line(
    name: str, case: Case, policy: Policy, problems: Sequence[Problem], core: Sequence[float], budget_s: float
) -> Line:
    took: list[float] = []
    busy: list[float] = []
    decisions = []
    for problem in problems:
        began, cpu = time.perf_counter(), _cpu_seconds()
        try:
            plan = policy(problem, budget_s)
        except Exception as error:
            # As in the server, where another policy plans then.
            plan = Plan(decision=Decision(status=f"failed: {type(error).__name__}"))
        took.append(time.perf_counter() - began)
        busy.append(_cpu_seconds() - cpu)
        decisions.append((plan.decision, len(plan.unplanned)))
    # What the core adds belongs to the decision.
    if core:
        took = [a + b for a, b in zip(took, core, strict=True)]
        busy = [a + b for a, b in zip(busy, core, strict=True)]
    asked = [d for d, _ in decisions if d.solve_s > 0]
    gaps = [d.gap for d, _ in decisions if not math.isnan(d.gap)]
    spread = _spread(took)
    return {
        **asdict(case),
        "gpus": case.nodes * NODE_SIZE,
        "policy": name,
        "samples": len(problems),
        "ms": spread,
        "cpu_ms": _spread(busy),
        "core_ms": _spread(core) if core else None,
        "build_ms": _spread([d.build_s for d in asked]),
        "solve_ms": _spread([d.solve_s for d in asked]),
        "asked_the_solver": len(asked),
        "statuses": dict(sorted(Counter(d.status for d, _ in decisions if d.status).items())),
        "gap_mean": sum(gaps) / len(gaps) if gaps else None,
        "gap_max": max(gaps, default=None),
        "unplanned_nodes": sum(unplanned for _, unplanned in decisions) / len(decisions),
        "met": None if case.target_ms is None else (_spread(busy)["p99"] or 0.0) <= case.target_ms,
    }


def _cpu_seconds() -> float:
    """Of this process and of those that have ended, such as CBC's."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _spread(seconds: Sequence[float]) -> dict[str, float | None]:
    ms = sorted(1000 * s for s in seconds)
    return {**quantiles(ms, (50, 99)), "max": ms[-1] if ms else None}


def write(lines: Sequence[Line], budget_s: float, folder: Path) -> list[Path]:
    """The lines as solver.json and solver.md."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "solver.json", folder / "solver.md"]
    paths[0].write_text(json.dumps({"budget_s": budget_s, "lines": lines}, indent=1) + "\n")
    paths[1].write_text(markdown(lines, budget_s))
    return paths


HEADER = (
    *("requests", "GPUs", "moments", "policy", "decision", "CPU", "build", "solve"),
    *("solver asked", "statuses", "gap", "left", "target"),
)


def markdown(lines: Sequence[Line], budget_s: float) -> str:
    """The lines as a table."""
    out = [
        "# How long decisions take",
        "",
        f"From `python -m bench solver`; one core, budget {1000 * budget_s:g} ms, nodes of {NODE_SIZE} GPUs, "
        "derived FLUX.1-dev profile. Milliseconds, model building included, p50 / p99 / max. *simulated*: "
        "what the core asks for at moments of overload in the simulator, with what the core itself took; "
        "*random*: all nodes at once, at random steps. *CPU* (p50 / p99) is without waiting for a core, "
        "and what targets are held against. *build* and *solve* (p50 / p99) are of the decisions in which a "
        "solver was asked. *gap*: requests that a better plan could have on time at most, mean / max. "
        "*left*: nodes that the budget did not suffice for, which the next decision plans.",
        "",
        f"| {' | '.join(HEADER)} |",
        "|---" * len(HEADER) + "|",
    ]
    for line in lines:
        gap = "" if line["gap_mean"] is None else f"{line['gap_mean']:.1f} / {line['gap_max']:.0f}"
        statuses = ", ".join(f"{name} {count}" for name, count in line["statuses"].items())
        target = (
            ""
            if line["met"] is None
            else f"p99 at most {line['target_ms']:g}: {'met' if line['met'] else 'missed'}"
        )
        cells = [
            line["requests"],
            line["gpus"],
            f"{line['samples']} {line['source']}",
            line["policy"],
            _ms(line["ms"], "p50", "p99", "max"),
            _ms(line["cpu_ms"], "p50", "p99"),
            _ms(line["build_ms"], "p50", "p99"),
            _ms(line["solve_ms"], "p50", "p99"),
            line["asked_the_solver"] or "",
            statuses,
            gap,
            f"{line['unplanned_nodes']:.1f}" if line["nodes"] > 1 else "",
            target,
        ]
        out.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(out) + "\n"


def _ms(spread: dict[str, float | None], *names: str) -> str:
    values = [spread[name] for name in names]
    return " / ".join(f"{value:.1f}" for value in values if value is not None)
