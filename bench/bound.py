"""An upper bound on what any scheduler could do with a trace, even one that knows it beforehand.

Who can be on time together is asked of a program in which steps are a fluid (`program.py`), for one busy
period after another; where that is too large to solve in time, GPU-seconds alone say something (`energy.py`).
A step that others can share takes as little of its GPUs as in the best batch for it (`batches.py`). Where the
answer leaves next to no room, whole steps are looked at (`whole.py`): a set that they prove impossible is
forbidden, and the program solved again. Places, changes of group, the lead, the margin and the decision time
are left out, all of which only hurt a real scheduler; so is noise, so compare with runs without any. The
solver's dual bound makes a time limit harmless: it loosens the bound, but never makes it wrong.
"""

import math
import time
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from bench.aside import printing_aside
from bench.batches import least_shares
from bench.energy import most_by_energy
from bench.program import Job, busy_periods, fluid
from bench.simulator import Arrival
from bench.whole import Conflicts
from scheduler.policies.mix import ladder
from scheduler.profile import Profile

RELAXED_ROUNDS, FLUID_ROUNDS, ROUNDS = 12, 3, 50
"""Times that a relaxation is solved with more block rows, the program itself, and it with conflicts."""
ENERGY_SHARE = 0.25
"""Of the time, at most, for a first bound by GPU-seconds alone."""
CONFLICT_S = 2.0
"""Time for one look whether some requests can all be on time in whole steps."""


@dataclass(frozen=True, slots=True)
class Bound:
    """The bound, by weight; `proven`: no relaxed schedule brings more in on time than `weight`.

    Where it is not proven, a time limit has cut the search short, and the true bound may be lower.
    `total` is the weight of the requests with a deadline, `hopeless` of those that miss it even alone.
    `chosen` are the ids of those that the best relaxed schedule found has on time.
    """

    weight: float
    total: float
    hopeless: float
    proven: bool
    periods: int
    largest_period: int
    seconds: float
    chosen: tuple[str, ...]

    @property
    def sar(self) -> float | None:
        """The bound as a share of the requests with a deadline, by weight."""
        return self.weight / self.total if self.total else None


def bound(arrivals: Iterable[Arrival], profile: Profile, gpus: int, time_limit_s: float = 60.0) -> Bound:
    """The most weight that can be on time; `time_limit_s` is for each busy period."""
    started = time.perf_counter()
    jobs = _jobs(arrivals, profile, gpus)
    feasible = [job for job in jobs if job.feasible]
    periods = busy_periods(feasible)
    weight, proven = 0.0, True
    chosen: list[str] = []
    for period in periods:
        with printing_aside():
            best, optimal, on_time = _solve(period, gpus, time_limit_s)
        weight += best
        proven = proven and optimal
        chosen += on_time
    total = sum(job.weight for job in jobs)
    return Bound(
        weight=weight,
        total=total,
        hopeless=total - sum(job.weight for job in feasible),
        proven=proven,
        periods=len(periods),
        largest_period=max(map(len, periods), default=0),
        seconds=time.perf_counter() - started,
        chosen=tuple(chosen),
    )


def _jobs(arrivals: Iterable[Arrival], profile: Profile, gpus: int) -> list[Job]:
    widest = min(profile.max_degree, 1 << (gpus.bit_length() - 1))
    wanted = [
        (arrival.at, arrival.at + arrival.submission.deadline_s, arrival.submission)
        for arrival in arrivals
        if arrival.submission.deadline_s is not None
    ]
    windows: dict[Hashable, list[tuple[float, float]]] = defaultdict(list)
    for begin, end, s in wanted:
        windows[s.batch_key].append((begin, end))
    jobs = []
    for begin, end, s in wanted:
        alike = sum(other < end and begin < until for other, until in windows[s.batch_key])
        steps = ladder(profile, s.width, s.height, widest)
        jobs.append(
            Job(
                id=s.id,
                begin=begin,
                end=end,
                encode=profile.encode(),
                decode=profile.decode(s.width, s.height),
                steps=s.steps,
                weight=s.weight,
                ladder=steps,
                shares=least_shares(profile, s.width, s.height, steps, alike),
            )
        )
    return jobs


def _solve(jobs: Sequence[Job], gpus: int, time_limit_s: float) -> tuple[float, bool, list[str]]:
    """The most weight on time in one busy period, whether that is proven, and whose it is."""
    if len(jobs) == 1:
        return jobs[0].weight, True, [jobs[0].id]
    until = time.perf_counter() + time_limit_s
    bound, proven = most_by_energy(jobs, gpus, ENERGY_SHARE * time_limit_s), False
    program = fluid(jobs, gpus)
    conflicts = Conflicts(gpus, CONFLICT_S)
    columns = {job.id: z for z, job in enumerate(jobs)}
    chosen: list[Job] = []
    # Most block rows never matter: they are added where a solution breaks them, first of the relaxation.
    for _ in range(RELAXED_ROUNDS):
        answer = program.solve(max(0.0, until - time.perf_counter()), relaxed=True)
        if answer.x is None or not program.add_violated(answer.x):
            break
    for turn in range(ROUNDS):
        left = until - time.perf_counter()
        if left <= 0:
            proven = False
            break
        answer = program.solve(left)
        limit = answer.mip_dual_bound
        if limit is not None and math.isfinite(limit):
            bound = min(bound, -float(limit) + 1e-6)
        proven = answer.status == 0
        if answer.x is None:
            break
        chosen = [job for job, z in zip(jobs, answer.x, strict=False) if z > 0.5]
        if program.add_violated(answer.x) and turn < FLUID_ROUNDS:
            continue
        clashes = conflicts.find(chosen, until) if proven else []
        if not clashes:
            break
        for clash in clashes:
            program.rows.add([(columns[job.id], 1.0) for job in clash], len(clash) - 1.0)
    if all(job.weight == int(job.weight) for job in jobs):
        bound = float(math.floor(bound))
    return bound, proven, [job.id for job in chosen]
