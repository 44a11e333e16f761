"""The mixed-integer program behind the clairvoyant bound: one busy period, its steps as a fluid.

Time is cut into slots at every arrival and deadline. A request that is to be on time gets its steps at any
time and any degree in the slots of its window.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from bench.least import least_gpu_seconds
from scheduler.policies.mix import Ladder

TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class Job:
    """A request as the bound sees it; times in seconds.

    `shares`: what a step takes of its GPUs' time at least, where others share it; by degree, else all of it.
    """

    id: str
    begin: float
    end: float
    encode: float
    decode: float
    steps: int
    weight: float
    ladder: Ladder
    shares: Mapping[int, float] = field(default_factory=dict)

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


def busy_periods(jobs: Sequence[Job]) -> list[list[Job]]:
    """Jobs whose windows are linked by overlaps; different periods cannot hinder each other."""
    periods: list[list[Job]] = []
    until = -math.inf
    for job in sorted(jobs, key=lambda job: job.begin):
        if job.begin >= until:
            periods.append([])
        periods[-1].append(job)
        until = max(until, job.end)
    return periods


class Rows:
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
class Program:
    """One column a job first (z, on time), then seconds by job, slot and degree.

    `stages` has, of each job, the columns of its encoding and decoding by slot; `steps` those of its steps by
    slot and degree. `lanes` has the columns of each slot by job, with the GPUs that each uses and the share
    of their time. `counts` are columns of whole numbers besides z, with the most that each can be.
    """

    jobs: Sequence[Job]
    gpus: int
    slots: list[tuple[float, float]]
    stages: list[dict[int, int]]
    steps: list[dict[tuple[int, int], int]]
    lanes: list[dict[int, list[tuple[int, int, float]]]]
    rows: Rows
    columns: int
    counts: dict[int, int] = field(default_factory=dict)
    known: set[tuple[int, int, int]] = field(default_factory=set)

    def column(self) -> int:
        """A new one."""
        self.columns += 1
        return self.columns - 1

    def solve(self, time_limit_s: float, relaxed: bool = False, shares: Sequence[float] | None = None) -> Any:
        """What scipy finds for the most weight on time.

        `relaxed`: nothing need be whole. `shares`: all jobs are on time, each with so many times its work.
        """
        count = len(self.jobs)
        cost = np.zeros(self.columns)
        lower = np.zeros(self.columns)
        upper = np.full(self.columns, np.inf)
        whole = np.zeros(self.columns)
        for column, most in self.counts.items():
            upper[column] = most
            whole[column] = 1
        if shares is None:
            cost[:count] = [-job.weight for job in self.jobs]
            upper[:count] = 1.0
            whole[:count] = 1
        else:
            lower[:count] = upper[:count] = shares
        return milp(
            cost,
            integrality=np.zeros(self.columns) if relaxed else whole,
            bounds=Bounds(lower, upper),
            constraints=self.rows.constraint(self.columns),
            options={"time_limit": time_limit_s, "mip_rel_gap": 0.0},
        )

    def add_violated(self, found: np.ndarray) -> int:
        """Add the block rows that a solution breaks; returns how many.

        Degrees are powers of two, so whoever runs at all takes at least one of the gpus / k blocks of k that
        those of degree k and wider share: a fluid may not run 8 wide on average while another one runs.
        """
        added = 0
        for s, by_job in enumerate(self.lanes):
            length = self.slots[s][1] - self.slots[s][0]
            lanes = [entry for lane in by_job.values() for entry in lane]
            size = 2
            while size <= self.gpus:
                if self.gpus % size == 0:
                    wide = [(c, share * k / size) for c, k, share in lanes if k >= size]
                    limit = self.gpus / size * length
                    used = sum(found[c] * blocks for c, blocks in wide)
                    for z, lane in by_job.items():
                        narrow = [(c, 1.0) for c, k, _ in lane if k < size]
                        if (s, z, size) in self.known or not narrow:
                            continue
                        if used + sum(found[c] for c, _ in narrow) > limit + 1e-6:
                            self.rows.add([*wide, *narrow], limit)
                            self.known.add((s, z, size))
                            added += 1
                size *= 2
        return added


def fluid(jobs: Sequence[Job], gpus: int) -> Program:
    """The program without block rows: most of them never matter, `add_violated` adds those that do."""
    # Data.
    cuts = sorted({t for job in jobs for t in (job.begin, job.steps_begin, job.steps_end, job.end)})
    slots = list(itertools.pairwise(cuts))
    index = {cut: i for i, cut in enumerate(cuts)}

    # Variables: z (on time) of every job, then seconds by job, slot and degree; encoding and decoding use
    # one GPU.
    program = Program(
        jobs, gpus, slots, [{} for _ in jobs], [{} for _ in jobs], [{} for _ in slots], Rows(), len(jobs)
    )
    rows = program.rows
    for z, job in enumerate(jobs):
        step = job.ladder.step
        stages, steps = program.stages[z], program.steps[z]
        for s in range(index[job.begin], index[job.end]):
            lane = program.lanes[s].setdefault(z, [])
            if job.encode + job.decode > 0:
                stages[s] = program.column()
                lane.append((stages[s], 1, 1.0))
            if slots[s][0] < job.steps_begin - TOLERANCE or slots[s][1] > job.steps_end + TOLERANCE:
                continue
            for degree in job.ladder.degrees:
                steps[s, degree] = program.column()
                lane.append((steps[s, degree], degree, job.shares.get(degree, 1.0)))
        # What is on time has all its steps and its other stages within its window ...
        rows.add([*((c, -1 / step[k]) for (_, k), c in steps.items()), (z, float(job.steps))], 0.0)
        if stages:
            rows.add([*((c, -1.0) for c in stages.values()), (z, job.encode + job.decode)], 0.0)
        # ... takes at least the GPU-seconds of the best mix of whole steps ...
        least = least_gpu_seconds(job.ladder, job.steps, job.steps_end - job.steps_begin)
        if least < math.inf:
            spent = [(c, -float(k)) for (_, k), c in steps.items()]
            rows.add([*spent, (z, least)], TOLERANCE * least)
    for (begin, end), by_job in zip(slots, program.lanes, strict=True):
        # ... and does one thing at a time.
        for z, lane in by_job.items():
            rows.add([*((column, 1.0) for column, _, _ in lane), (z, begin - end)], 0.0)
        # All together use no more than there is.
        lanes = [entry for lane in by_job.values() for entry in lane]
        rows.add([(column, degree * share) for column, degree, share in lanes], gpus * (end - begin))
    return program
