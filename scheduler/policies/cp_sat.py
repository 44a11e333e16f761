"""The fluid model in OR-Tools CP-SAT."""

from collections.abc import Sequence

from ortools.sat.python import cp_model

from scheduler.policies.exact import exact
from scheduler.policies.fluid import Program, Row, Solution
from scheduler.problem import Policy

OVERRUN_S = 0.01
"""CP-SAT takes up to this much longer than its limit."""
EFFORT = 0.01
"""CP-SAT's own measure of work, about seconds. Where the time does not run out, the same moment gets the same
answer."""
_STATUS = {
    cp_model.OPTIMAL: "optimal",
    cp_model.FEASIBLE: "feasible",
    cp_model.INFEASIBLE: "infeasible",
    cp_model.UNKNOWN: "unknown",
}


def cp_sat() -> Policy:
    """The policy."""
    return exact(solve, OVERRUN_S)


def solve(program: Program, more: Sequence[Row], start: frozenset[int], seconds: float) -> Solution:
    """Solve a program with `more` rows, beginning with those of `start` (of its works) on time."""
    # Variables: on time or not, and milliseconds.
    model = cp_model.CpModel()
    columns = [model.new_int_var(0, upper, "") for upper in program.uppers]

    # Constraints: steps, one thing at a time, blocks.
    for row in (*program.rows, *more):
        terms, factors = zip(*row.terms, strict=True)
        model.add(cp_model.LinearExpr.weighted_sum([columns[i] for i in terms], factors) <= row.limit)

    # Objective: the most weight on time, then the fewest GPU-seconds.
    model.maximize(cp_model.LinearExpr.weighted_sum(columns, program.gains))

    # Start.
    for index in range(len(program.works)):
        model.add_hint(columns[index], index in start)

    # Solve.
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = seconds
    solver.parameters.max_deterministic_time = EFFORT
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = 0
    # It would take Ctrl-C for itself, and give it to the system's default afterwards.
    solver.parameters.catch_sigint_signal = False
    # The programs are small and nearly linear: cuts decide them, and presolving takes longer than solving.
    solver.parameters.linearization_level = 2
    solver.parameters.cp_model_presolve = False
    status = solver.solve(model)

    # Solution.
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return Solution(None, float(sum(gain for gain in program.gains if gain > 0)), _STATUS[status])
    values = tuple(float(solver.value(column)) for column in columns)
    return Solution(values, solver.best_objective_bound, _STATUS[status])
