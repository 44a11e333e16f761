"""Requests that cannot all be on time because steps are whole, though as a fluid they could.

For a few requests that are all to be on time the program says more than for all that may be: each runs a
whole number of steps at each degree, its encoding comes before its steps and its decoding after them. Where
that has no solution, no schedule has them all on time.
"""

import time
from collections.abc import Sequence

from bench.program import Job, Program, busy_periods, fluid

ROUNDS = 12
"""Times that a program is solved again with more block rows."""
SPARE = 0.5
"""Where there is room for so many more steps of each, whole steps hardly ever do harm: not worth a search."""


class Conflicts:
    """Finds sets of jobs that cannot all be on time, and remembers what it has looked at.

    `time_limit_s` is for one set; where it is not enough, the set counts as possible.
    """

    def __init__(self, gpus: int, time_limit_s: float) -> None:
        self._gpus = gpus
        self._time_limit_s = time_limit_s
        self._refuted: dict[tuple[str, ...], bool] = {}

    def find(self, jobs: Sequence[Job], until: float = float("inf")) -> list[list[Job]]:
        """Sets among `jobs`, as small as can be, that cannot all be on time.

        None is looked for after `until`, by `time.perf_counter`.
        """
        found = []
        for period in busy_periods(jobs):
            if self._impossible(period, until):
                found.append(self._smallest(period, until))
        return found

    def _smallest(self, jobs: list[Job], until: float) -> list[Job]:
        kept = jobs
        for job in jobs:
            for period in busy_periods([other for other in kept if other is not job]):
                if self._impossible(period, until):
                    kept = period
                    break
        return kept

    def _impossible(self, jobs: Sequence[Job], until: float) -> bool:
        """Whether it is proved that not all can be on time."""
        key = tuple(job.id for job in jobs)
        if key not in self._refuted:
            left = min(self._time_limit_s, until - time.perf_counter())
            if len(jobs) < 2 or left <= 0:
                return False
            self._refuted[key] = impossible(jobs, self._gpus, left)
        return self._refuted[key]


def impossible(jobs: Sequence[Job], gpus: int, time_limit_s: float = float("inf")) -> bool:
    """Whether it is proved that not all of these can be on time; out of time is no proof."""
    until = time.perf_counter() + time_limit_s
    program = fluid(jobs, gpus)
    if not _infeasible(program, until, True, [1.0 + SPARE / job.steps for job in jobs]):
        return False
    _count_steps(program)
    all_work = [1.0] * len(jobs)
    return _infeasible(program, until, True, all_work) or _infeasible(program, until, False, all_work)


def _infeasible(program: Program, until: float, relaxed: bool, shares: Sequence[float]) -> bool:
    """Whether it is proved that not all jobs can have that much of their work done."""
    for _ in range(ROUNDS):
        left = until - time.perf_counter()
        if left <= 0:
            return False
        answer = program.solve(left, relaxed, shares)
        if answer.x is None:
            return bool(answer.status == 2)  # no time limit: there is none
        if not program.add_violated(answer.x):
            return False
    return False


def _count_steps(program: Program) -> None:
    """Let each job take whole numbers of steps at each degree, and its stages one after the other."""
    rows = program.rows
    for z, job in enumerate(program.jobs):
        steps = program.steps[z]
        counts = []
        for degree, seconds in job.ladder.step.items():
            count = program.column()
            program.counts[count] = job.steps
            counts.append((count, -1.0))
            rows.add([*((c, -1.0) for (_, k), c in steps.items() if k == degree), (count, seconds)], 0.0)
        rows.add([*counts, (z, float(job.steps))], 0.0)
        _in_order(program, z)


def _in_order(program: Program, z: int) -> None:
    """At the end of each slot at least as large a share of a stage is done as of the next one."""
    job, rows = program.jobs[z], program.rows
    encoded: list[tuple[int, float]] = []
    stepped: list[tuple[int, float]] = []
    decoded: list[tuple[int, float]] = []
    for s in sorted({*program.stages[z], *(s for s, _ in program.steps[z])}):
        if job.encode > 0:
            column = program.column()
            encoded.append((column, 1 / job.encode))
            # What is neither encoding nor steps is decoding.
            rows.add([(column, 1.0), (program.stages[z][s], -1.0)], 0.0)
            if job.decode > 0:
                decoded.append((column, -1 / job.decode))
        if job.decode > 0:
            decoded.append((program.stages[z][s], 1 / job.decode))
        for degree, seconds in job.ladder.step.items():
            if (s, degree) in program.steps[z]:
                stepped.append((program.steps[z][s, degree], 1 / (seconds * job.steps)))
        if encoded:
            rows.add([*stepped, *_minus(encoded)], 0.0)
        if decoded:
            rows.add([*decoded, *_minus(stepped)], 0.0)
    for shares in (encoded, stepped, decoded):
        if shares:
            rows.add([*shares, (z, -1.0)], 0.0)


def _minus(terms: list[tuple[int, float]]) -> list[tuple[int, float]]:
    return [(column, -coefficient) for column, coefficient in terms]
