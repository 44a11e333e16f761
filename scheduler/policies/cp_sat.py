"""The round model in OR-Tools CP-SAT."""

from ortools.sat.python import cp_model

from scheduler.policies.exact import exact
from scheduler.policies.round_model import Program, Solution
from scheduler.problem import Policy

OVERRUN_S = 0.01
"""CP-SAT takes up to this much longer than its limit."""
_STATUS = {
    cp_model.OPTIMAL: "optimal",
    cp_model.FEASIBLE: "feasible",
    cp_model.INFEASIBLE: "infeasible",
    cp_model.UNKNOWN: "unknown",
}


def cp_sat() -> Policy:
    """The policy."""
    return exact(solve, OVERRUN_S)


def solve(program: Program, start: frozenset[int], seconds: float) -> Solution:
    """Solve a program, beginning at the columns of `start`."""
    # Variables: whether a choice is made.
    model = cp_model.CpModel()
    chosen = [model.new_bool_var("") for _ in program.choices]

    # Constraints: one choice a request, blocks, energy.
    for row in program.rows:
        terms, factors = zip(*row.terms, strict=True)
        model.add(cp_model.LinearExpr.weighted_sum([chosen[i] for i in terms], factors) <= row.limit)

    # Objective: the most weight on time, then the fewest GPU-seconds.
    model.maximize(cp_model.LinearExpr.weighted_sum(chosen, [choice.gain for choice in program.choices]))

    # Start.
    for index, variable in enumerate(chosen):
        model.add_hint(variable, index in start)

    # Solve.
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = seconds
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = 0
    status = solver.solve(model)

    # Solution.
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return Solution(None, sum(max(0, choice.gain) for choice in program.choices), _STATUS[status])
    made = frozenset(index for index, variable in enumerate(chosen) if solver.value(variable))
    return Solution(made, solver.best_objective_bound, _STATUS[status])
