"""An upper bound on what any scheduler could do with a trace, even one that knows it beforehand.

Time is cut into slots at every arrival and deadline. A request that is to be on time gets its steps as
a fluid: any time at any degree in the slots of its window. Steps that cannot be interrupted, places,
changes of group, the lead, the margin and the decision time are left out, all of which only hurt a real
scheduler; so is noise, so compare with runs without any. The mixed-integer program is solved for one
busy period after another, and the solver's dual bound makes a time limit harmless: it loosens the bound, but
never makes it wrong.
"""

import itertools
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from bench.simulator import Arrival
from scheduler.policies.mix import Ladder, ladder
from scheduler.profile import Profile

TOLERANCE = 1e-9


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


@dataclass(frozen=True, slots=True)
class Job:
    """A request as the bound sees it; times in seconds."""

    id: str
    begin: float
    end: float
    encode: float
    decode: float
    steps: int
    weight: float
    ladder: Ladder

    @property
    def feasible(self) -> bool:
        """Whether it could be on time with all GPUs to itself."""
        return self.steps_begin + self.steps * self.ladder.fastest <= self.steps_end + TOLERANCE

    @property
    def steps_begin(self) -> float:
        """When its first step can begin."""
        return self.begin + self.encode

    @property
    def steps_end(self) -> float:
        """When its last step must have ended."""
        return self.end - self.decode


def bound(arrivals: Iterable[Arrival], profile: Profile, gpus: int, time_limit_s: float = 60.0) -> Bound:
    """The most weight that can be on time; `time_limit_s` is for each busy period."""
    started = time.perf_counter()
    jobs = _jobs(arrivals, profile, gpus)
    feasible = [job for job in jobs if job.feasible]
    periods = _busy_periods(feasible)
    weight, proven = 0.0, True
    chosen: list[str] = []
    for period in periods:
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
    return [
        Job(
            id=s.id,
            begin=arrival.at,
            end=arrival.at + s.deadline_s,
            encode=profile.encode(),
            decode=profile.decode(s.width, s.height),
            steps=s.steps,
            weight=s.weight,
            ladder=ladder(profile, s.width, s.height, widest),
        )
        for arrival in arrivals
        if (s := arrival.submission).deadline_s is not None
    ]


def _busy_periods(jobs: Sequence[Job]) -> list[list[Job]]:
    """Jobs whose windows are linked by overlaps; different periods cannot hinder each other."""
    periods: list[list[Job]] = []
    until = -math.inf
    for job in sorted(jobs, key=lambda job: job.begin):
        if job.begin >= until:
            periods.append([])
        periods[-1].append(job)
        until = max(until, job.end)
    return periods


def efficient_degrees(steps: dict[int, float]) -> list[int]:
    """Degrees that no mix of the others (and of idling) beats: the upper hull of speed over GPUs."""
    hull: list[tuple[int, float]] = [(0, 0.0)]
    for degree, seconds in sorted(steps.items()):
        point = (degree, 1 / seconds)
        if point[1] <= hull[-1][1]:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    return [degree for degree, _ in hull[1:]]


def _slope(a: tuple[int, float], b: tuple[int, float]) -> float:
    return (b[1] - a[1]) / (b[0] - a[0])


class _Rows:
    """Sparse rows of a linear program with their upper sides."""

    def __init__(self) -> None:
        self._data: list[float] = []
        self._columns: list[int] = []
        self._starts: list[int] = [0]
        self._upper: list[float] = []

    def add(self, terms: Iterable[tuple[int, float]], upper: float) -> None:
        """sum of coefficient * variable <= upper."""
        for column, coefficient in terms:
            self._columns.append(column)
            self._data.append(coefficient)
        self._starts.append(len(self._data))
        self._upper.append(upper)

    def constraint(self, columns: int) -> LinearConstraint:
        """All rows, for a program with so many variables."""
        shape = (len(self._upper), columns)
        return LinearConstraint(csr_array((self._data, self._columns, self._starts), shape), ub=self._upper)


def _solve(jobs: Sequence[Job], gpus: int, time_limit_s: float) -> tuple[float, bool, list[str]]:
    """The most weight on time in one busy period, whether that is proven, and whose it is."""
    everything = sum(job.weight for job in jobs)
    if len(jobs) == 1:
        return everything, True, [job.id for job in jobs]
    # Data.
    cuts = sorted({t for job in jobs for t in (job.begin, job.steps_begin, job.steps_end, job.end)})
    slots = list(itertools.pairwise(cuts))
    index = {cut: i for i, cut in enumerate(cuts)}

    # Variables: z (on time) of every job, then seconds by job, degree and slot; degree 0: the other stages.
    count = len(jobs)
    used: list[list[tuple[int, float]]] = [[] for _ in slots]  # by slot: variable and GPUs
    rows = _Rows()
    for z, job in enumerate(jobs):
        step = job.ladder.step
        first, last = index[job.begin], index[job.end]
        by_slot: dict[int, list[int]] = {s: [] for s in range(first, last)}
        done: list[tuple[int, float]] = []
        spent: list[tuple[int, float]] = []
        single: list[tuple[int, float]] = []
        for s in range(first, last):
            if job.encode + job.decode > 0:
                by_slot[s].append(count)
                used[s].append((count, 1.0))
                single.append((count, -1.0))
                count += 1
            if slots[s][0] < job.steps_begin - TOLERANCE or slots[s][1] > job.steps_end + TOLERANCE:
                continue
            for degree in efficient_degrees(step):
                by_slot[s].append(count)
                used[s].append((count, float(degree)))
                done.append((count, -1 / step[degree]))
                spent.append((count, -float(degree)))
                count += 1
        # What is on time has all its steps and its other stages within its window ...
        rows.add([*done, (z, float(job.steps))], 0.0)
        if single:
            rows.add([*single, (z, job.encode + job.decode)], 0.0)
        # ... takes at least the GPU-seconds of the best mix of whole steps ...
        best = job.ladder.cheapest(job.steps, job.steps_end - job.steps_begin)
        if best is not None:
            rows.add([*spent, (z, best.gpu_seconds)], TOLERANCE * best.gpu_seconds)
        # ... and does one thing at a time.
        for s, variables in by_slot.items():
            rows.add([*((v, 1.0) for v in variables), (z, -(slots[s][1] - slots[s][0]))], 0.0)
    # All together use no more than there is.
    for s, terms in enumerate(used):
        rows.add(terms, gpus * (slots[s][1] - slots[s][0]))

    # Objective: weight on time.
    cost = np.zeros(count)
    cost[: len(jobs)] = [-job.weight for job in jobs]
    integrality = np.zeros(count)
    integrality[: len(jobs)] = 1
    upper = np.full(count, np.inf)
    upper[: len(jobs)] = 1.0
    found = milp(
        cost,
        integrality=integrality,
        bounds=Bounds(np.zeros(count), upper),
        constraints=rows.constraint(count),
        options={"time_limit": time_limit_s, "mip_rel_gap": 0.0},
    )

    # Solution.
    chosen = [] if found.x is None else [job.id for job, z in zip(jobs, found.x, strict=False) if z > 0.5]
    if found.mip_dual_bound is None or not math.isfinite(found.mip_dual_bound):
        return everything, False, chosen
    weight = min(everything, -float(found.mip_dual_bound) + 1e-6)
    if all(job.weight == int(job.weight) for job in jobs):
        weight = float(math.floor(weight))
    return weight, found.status == 0, chosen
