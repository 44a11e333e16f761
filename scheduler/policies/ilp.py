"""The fluid model as a mixed-integer program in PuLP; solved by CBC, which comes with it."""

from collections.abc import Sequence

import pulp

from scheduler.policies.exact import exact
from scheduler.policies.fluid import STEP_UNIT, Program, Row, Solution
from scheduler.problem import Policy

OVERRUN_S = 0.02
"""CBC is a process of its own: starting and reading it takes this much."""


def ilp() -> Policy:
    """The policy."""
    return exact(solve, OVERRUN_S)


def solve(program: Program, more: Sequence[Row], start: frozenset[int], seconds: float) -> Solution:
    """Solve a program with `more` rows, beginning with those of `start` (of its works) on time."""
    # Variables: on time or not, and milliseconds, which may be fractions here.
    problem = pulp.LpProblem("round", pulp.LpMaximize)
    works = len(program.works)
    columns = [
        problem.add_variable(f"x{index}", 0, upper, "Integer" if index < works else "Continuous")
        for index, upper in enumerate(program.uppers)
    ]

    # Objective: the most weight on time, then the fewest GPU-seconds. In units of weight: CBC computes in
    # floating point, and its tolerances are relative to the largest numbers.
    problem += pulp.lpSum(gain / program.scale * x for gain, x in zip(program.gains, columns, strict=True))

    # Constraints: steps, one thing at a time, blocks.
    for row in (*program.rows, *more):
        unit = STEP_UNIT if max(abs(factor) for _, factor in row.terms) >= STEP_UNIT else 1
        problem += pulp.lpSum(factor / unit * columns[i] for i, factor in row.terms) <= row.limit / unit

    # Start.
    for index in range(works):
        columns[index].setInitialValue(int(index in start))

    # Solve.
    solver = pulp.PULP_CBC_CMD(msg=False, timeLimit=seconds, threads=1, warmStart=True, gapRel=0, gapAbs=0)
    status = problem.solve(solver)

    # Solution. PuLP does not pass CBC's bound on: without a proof there is only the trivial one.
    trivial = float(sum(gain for gain in program.gains if gain > 0))
    if status == pulp.LpStatusInfeasible:
        return Solution(None, trivial, "infeasible")
    if problem.sol_status not in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible):
        return Solution(None, trivial, "unknown")
    values = tuple(float(x.value()) for x in columns)
    if status == pulp.LpStatusOptimal and problem.sol_status == pulp.LpSolutionOptimal:
        reached = sum(gain * value for gain, value in zip(program.gains, values, strict=True))
        return Solution(values, reached, "optimal")
    return Solution(values, trivial, "feasible")
