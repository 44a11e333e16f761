"""The fluid model as a mixed-integer program in PuLP; solved by CBC, which comes with it, or by another."""

import math
import time
from collections.abc import Sequence
from functools import partial
from tempfile import TemporaryDirectory

import pulp

from scheduler.policies.exact import MAX_WORKS, exact
from scheduler.policies.fluid import STEP_UNIT, Program, Row, Solution
from scheduler.problem import Policy

OVERRUN_S = 0.03
"""CBC is a process of its own: to start it, to stop it and to read what it wrote take up to this much."""
LEAST_S = 0.005
"""With less CBC is not asked: stopped within half a millisecond, it calls anything infeasible."""


SOLVERS = {
    "cbc": "PULP_CBC_CMD",
    "glpk": "GLPK_CMD",
    "highs": "HiGHS_CMD",
    "scip": "SCIP_CMD",
    "gurobi": "GUROBI_CMD",
    "cplex": "CPLEX_CMD",
}
"""PuLP's names of solvers that run as a process of their own, so that no two libraries clash in ours."""


def ilp(solver: str = "cbc") -> Policy:
    """The policy. ValueError where there is no such solver on this machine."""
    installed = [name for name, known in SOLVERS.items() if pulp.getSolver(known, msg=False).available()]
    if solver not in installed:
        raise ValueError(f"unknown or missing solver {solver!r}; installed are {', '.join(installed)}")
    # More than one try, or the choice among a crowd, would take it several processes.
    return exact(partial(solve, solver=solver), OVERRUN_S, crowd=MAX_WORKS, tries=1)


def solve(
    program: Program,
    more: Sequence[Row],
    start: frozenset[int],
    seconds: float,
    _effort: float = 1.0,
    solver: str = "cbc",
) -> Solution:
    """Solve a program with `more` rows, beginning with those of `start` (of its works) on time."""
    until = time.perf_counter() + seconds
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

    # Solve, with CBC from the start.
    options = {"threads": 1, "warmStart": True, "gapRel": 0, "gapAbs": 0} if solver == "cbc" else {}
    if options:
        for index in range(works):
            columns[index].setInitialValue(int(index in start))
    left = until - time.perf_counter()
    if left < LEAST_S:
        return Solution(None, program.most, "unknown")
    # The others' command lines take whole seconds.
    limit = left if solver == "cbc" else math.ceil(left)
    with TemporaryDirectory(prefix="tetriserve-") as folder:
        command = pulp.getSolver(SOLVERS[solver], msg=False, timeLimit=limit, **options)
        command.tmpDir = folder  # PuLP leaves its files behind where a solver fails
        try:
            status = problem.solve(command)
        except pulp.PulpSolverError as error:
            return Solution(None, program.most, f"failed: {error}")

    # Solution. PuLP does not pass CBC's bound on: without a proof there is only the trivial one.
    if status == pulp.LpStatusInfeasible:
        return Solution(None, program.most, "infeasible")
    if problem.sol_status not in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible):
        return Solution(None, program.most, "unknown")
    values = tuple(float(x.value()) for x in columns)
    if status == pulp.LpStatusOptimal and problem.sol_status == pulp.LpSolutionOptimal:
        reached = sum(gain * value for gain, value in zip(program.gains, values, strict=True))
        return Solution(values, reached, "optimal")
    return Solution(values, program.most, "feasible")
