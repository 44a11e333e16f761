"""What steps and GPU time are worth where some requests are all to be on time: a linear program's prices.

The program is the fluid (`fluid.py`) with every one of them on time, and as many steps beyond those that are
left as can be, the same for each: how far they are from being too many. Its dual values say what a step of
each request is worth, in such steps, and what each request pays for a second at a degree.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple

from ortools.linear_solver import pywraplp

from scheduler.policies.board import Board, Work
from scheduler.policies.fluid import MS, STEP_UNIT, Program, build

GRAIN_S = 0.001
"""Spans are cut at multiples of this."""
ROUNDING = 1e-6
"""Of steps to spare: the solver computes in floating point."""


class Meter:
    """What has been worth how much up to a moment: rates that change at given moments."""

    def __init__(self, cuts: Sequence[float], rates: Sequence[float]) -> None:
        self._cuts = cuts
        self._rates = [*rates, 0.0]
        lengths = (b - a for a, b in pairwise(cuts))
        self._sums = [0.0, *accumulate(r * length for r, length in zip(rates, lengths, strict=True))]

    def at(self, moment: float) -> float:
        """The sum until then; `moment` is no earlier than the first cut."""
        index = bisect_right(self._cuts, moment) - 1
        return self._sums[index] + self._rates[index] * (moment - self._cuts[index])


class Price(NamedTuple):
    """Of a work: what a `step` is worth and what is `paid` for it, by degree.

    And what a second of its encoding or decoding is worth, and what is paid for that.
    """

    step: float
    paid: dict[int, Meter]
    stage: float
    stage_paid: Meter


@dataclass(frozen=True, slots=True)
class Prices:
    """`works` have their prices in their order; `worth` is that of the time of all GPUs.

    `spare`: so many steps of each could be added; below 0, so many are too many.
    """

    spare: float
    works: tuple[Price, ...]
    worth: Meter

    @property
    def impossible(self) -> bool:
        """Whether it is proved that not all of them can be on time."""
        return self.spare < -ROUNDING


def prices(board: Board, works: Sequence[Work]) -> Prices | None:
    """Of works with steps left that are all to be on time; None where the solver does not tell."""
    program = build(board, works, idle=False, grain_s=GRAIN_S)
    solved = _solve(program)
    if solved is None:
        return None
    spare, values, dual = solved
    # What a second of each column takes of what is scarce, and all of them together of each span.
    paid = [0.0] * len(program.uppers)
    for row, value in zip(program.rows[len(works) :], dual[len(works) :], strict=True):
        for column, factor in row.terms:
            paid[column] += MS * value * factor
    worth = [0.0] * len(program.spans)
    for column, use in (*program.uses, *program.stages):
        begin, end = program.spans[use.span]
        worth[use.span] += values[column] / MS * paid[column] / (end - begin)
    cuts = [program.spans[0][0], *(end for _, end in program.spans)]
    found = []
    for work, step in zip(program.works, dual, strict=False):
        steps = {k: [0.0] * len(program.spans) for k in work.ladder.degrees}
        for column, use in program.uses:
            if use.work is work:
                steps[use.degree][use.span] = paid[column]
        stages = {use.span: paid[column] for column, use in program.stages if use.work is work}
        rates = [stages.get(s, 0.0) for s in range(len(program.spans))]
        meters = {k: Meter(cuts, by_span) for k, by_span in steps.items()}
        found.append(Price(step, meters, min(stages.values(), default=0.0), Meter(cuts, rates)))
    return Prices(spare, tuple(found), Meter(cuts, worth))


def _solve(program: Program) -> tuple[float, list[float], list[float]] | None:
    """Steps to spare, the values of the columns, and the dual values of the rows, those of steps first."""
    solver = pywraplp.Solver.CreateSolver("GLOP")
    count, most = len(program.works), solver.infinity()

    # Variables: steps to spare, and the milliseconds of the fluid; who is on time is settled.
    spare = solver.NumVar(-most, most, "")
    columns = [None] * count + [solver.NumVar(0.0, most, "") for _ in program.uppers[count:]]

    # Constraints: those of the fluid.
    rows = []
    for index, row in enumerate(program.rows):
        settled = sum(factor for column, factor in row.terms if column < count)
        unit = STEP_UNIT if index < count else 1
        limit = solver.Constraint(-most, (row.limit - settled) / unit)
        for column, factor in row.terms:
            if column >= count:
                limit.SetCoefficient(columns[column], factor / unit)
        if index < count:
            limit.SetCoefficient(spare, 1.0)
        rows.append(limit)

    # Objective.
    solver.Objective().SetCoefficient(spare, 1.0)
    solver.Objective().SetMaximization()
    if solver.Solve() != pywraplp.Solver.OPTIMAL:
        return None
    values = [1.0 if column is None else column.solution_value() for column in columns]
    return spare.solution_value(), values, [row.dual_value() for row in rows]
