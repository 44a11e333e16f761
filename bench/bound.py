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
from typing import Any

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from bench.simulator import Arrival
from scheduler.policies.mix import Ladder, ladder
from scheduler.profile import Profile

TOLERANCE = 1e-9
RELAXED_ROUNDS, WHOLE_ROUNDS = 12, 4
"""Times that a relaxation, and the program itself, are solved again with more block rows."""


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


@dataclass(slots=True)
class _Program:
    """The mixed-integer program of a busy period: one column a job (z, on time), then seconds by job,
    degree and slot. `lanes` has the columns of each slot by job, with the GPUs that each uses."""

    jobs: Sequence[Job]
    slots: list[tuple[float, float]]
    lanes: list[dict[int, list[tuple[int, int]]]]
    rows: _Rows
    columns: int

    def solve(self, time_limit_s: float, relaxed: bool = False) -> Any:
        """What scipy finds; `relaxed`: a job can be on time in part."""
        count = len(self.jobs)
        cost = np.zeros(self.columns)
        cost[:count] = [-job.weight for job in self.jobs]
        integrality = np.zeros(self.columns)
        integrality[:count] = 0 if relaxed else 1
        upper = np.full(self.columns, np.inf)
        upper[:count] = 1.0
        return milp(
            cost,
            integrality=integrality,
            bounds=Bounds(np.zeros(self.columns), upper),
            constraints=self.rows.constraint(self.columns),
            options={"time_limit": time_limit_s, "mip_rel_gap": 0.0},
        )


def _program(jobs: Sequence[Job], gpus: int) -> _Program:
    # Data.
    cuts = sorted({t for job in jobs for t in (job.begin, job.steps_begin, job.steps_end, job.end)})
    slots = list(itertools.pairwise(cuts))
    index = {cut: i for i, cut in enumerate(cuts)}

    # Variables: z (on time) of every job, then seconds by job, degree and slot; encoding and decoding use
    # one GPU.
    count = len(jobs)
    lanes: list[dict[int, list[tuple[int, int]]]] = [{} for _ in slots]
    rows = _Rows()
    for z, job in enumerate(jobs):
        step = job.ladder.step
        done: list[tuple[int, float]] = []
        spent: list[tuple[int, float]] = []
        single: list[tuple[int, float]] = []
        for s in range(index[job.begin], index[job.end]):
            lane = lanes[s].setdefault(z, [])
            if job.encode + job.decode > 0:
                lane.append((count, 1))
                single.append((count, -1.0))
                count += 1
            if slots[s][0] < job.steps_begin - TOLERANCE or slots[s][1] > job.steps_end + TOLERANCE:
                continue
            for degree in job.ladder.degrees:
                lane.append((count, degree))
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
    for (begin, end), by_job in zip(slots, lanes, strict=True):
        # ... and does one thing at a time.
        for z, lane in by_job.items():
            rows.add([*((column, 1.0) for column, _ in lane), (z, begin - end)], 0.0)
        # All together use no more than there is.
        everybody = [(column, float(degree)) for lane in by_job.values() for column, degree in lane]
        rows.add(everybody, gpus * (end - begin))
    return _Program(jobs, slots, lanes, rows, count)


def _add_violated(program: _Program, gpus: int, found: np.ndarray, known: set[tuple[int, int, int]]) -> int:
    """Add the block rows that a solution breaks; returns how many.

    Degrees are powers of two, so whoever runs at all takes at least one of the gpus / k blocks of k that
    those of degree k and wider share: a fluid may not run 8 wide on average while another one runs.
    """
    added = 0
    for s, by_job in enumerate(program.lanes):
        length = program.slots[s][1] - program.slots[s][0]
        size = 2
        while size <= gpus:
            if gpus % size == 0:
                wide = [(c, k / size) for lane in by_job.values() for c, k in lane if k >= size]
                limit = gpus / size * length
                used = sum(found[c] * share for c, share in wide)
                for z, lane in by_job.items():
                    narrow = [(c, 1.0) for c, k in lane if k < size]
                    if (s, z, size) in known or not narrow:
                        continue
                    if used + sum(found[c] for c, _ in narrow) > limit + 1e-6:
                        program.rows.add([*wide, *narrow], limit)
                        known.add((s, z, size))
                        added += 1
            size *= 2
    return added


def _solve(jobs: Sequence[Job], gpus: int, time_limit_s: float) -> tuple[float, bool, list[str]]:
    """The most weight on time in one busy period, whether that is proven, and whose it is."""
    everything = sum(job.weight for job in jobs)
    if len(jobs) == 1:
        return everything, True, [job.id for job in jobs]
    began = time.perf_counter()
    program = _program(jobs, gpus)
    known: set[tuple[int, int, int]] = set()
    found = None
    bound, proven = everything, False
    # Most block rows never matter: they are added where a solution breaks them, first of the relaxation.
    for relaxed, rounds in ((True, RELAXED_ROUNDS), (False, WHOLE_ROUNDS)):
        for _ in range(rounds):
            left = time_limit_s - (time.perf_counter() - began)
            if left <= 0:
                break
            answer = program.solve(left, relaxed)
            if answer.x is None:
                break
            if not relaxed:
                found = answer
                limit = answer.mip_dual_bound
                if limit is not None and math.isfinite(limit):
                    bound = min(bound, -float(limit) + 1e-6)
                proven = answer.status == 0
            if not _add_violated(program, gpus, answer.x, known):
                break
    chosen = [] if found is None else [job.id for job, z in zip(jobs, found.x, strict=False) if z > 0.5]
    if all(job.weight == int(job.weight) for job in jobs):
        bound = float(math.floor(bound))
    return bound, proven, chosen
