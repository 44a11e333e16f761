"""The fluid model in OR-Tools CP-SAT."""

from collections.abc import Sequence

from ortools.sat.python import cp_model

from scheduler.policies.exact import exact
from scheduler.policies.fluid import Program, Row, Solution
from scheduler.problem import Policy

OVERRUN_S = 0.01
"""CP-SAT takes up to this much longer than its limit."""
EFFORT = 0.01
"""For a decision about one request, in CP-SAT's own measure of work, 5 to 8 seconds of CPU each; about n
requests, an n-th of it: in a rush few answers can be run. Where the time does not run out, the same moment
gets the same answer."""
_STATUS = {
    cp_model.OPTIMAL: "optimal",
    cp_model.FEASIBLE: "feasible",
    cp_model.INFEASIBLE: "infeasible",
    cp_model.UNKNOWN: "unknown",
    cp_model.MODEL_INVALID: "failed",  # numbers beyond 64 bits
}
GAP = 0.01
"""Share of all GPU-seconds that a solution may take beyond the least and still be called optimal."""
_LEAST, _MOST = -(1 << 63), (1 << 63) - 1
"""No limit from below, and the largest number that a model can hold."""


class _Model(cp_model.CpModel):
    """A model without the methods' old names, which take as long to make as all its variables and rows."""

    def _add_pre_pep8_methods(self) -> None:
        pass


def cp_sat() -> Policy:
    """The policy."""
    return exact(solve, OVERRUN_S)


def solve(
    program: Program, more: Sequence[Row], start: frozenset[int], seconds: float, effort: float = 1.0
) -> Solution:
    """Solve a program with `more` rows, beginning with those of `start` (of its works) on time."""
    if max(*program.uppers, *map(abs, program.gains)) > _MOST:
        return Solution(None, program.most, "failed")  # heavy ones beside deadlines in weeks
    # Written as the solver reads it: expressions would take several times as long.
    # Variables: on time or not, and milliseconds.
    model = _Model()
    proto = model.proto
    for upper in program.uppers:
        proto.variables.add().domain.extend((0, upper))

    # Constraints: steps, one thing at a time, blocks.
    for row in (*program.rows, *more):
        constraint = proto.constraints.add().linear
        terms = sorted(row.terms)
        constraint.vars.extend([column for column, _ in terms])
        constraint.coeffs.extend([factor for _, factor in terms])
        constraint.domain.extend((_LEAST, row.limit))

    # Objective: the most weight on time, then the fewest GPU-seconds; as a minimum.
    gains = [(column, gain) for column, gain in enumerate(program.gains) if gain]
    proto.objective.vars.extend([column for column, _ in gains])
    proto.objective.coeffs.extend([-gain for _, gain in gains])
    proto.objective.scaling_factor = -1.0

    # Start.
    works = range(len(program.works))
    proto.solution_hint.vars.extend(works)
    proto.solution_hint.values.extend([int(index in start) for index in works])

    # Solve.
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = seconds
    most = EFFORT / len(program.works)
    solver.parameters.max_deterministic_time = most * effort
    # Who is on time is what matters: of GPU-seconds, nobody needs the last proved.
    solver.parameters.absolute_gap_limit = GAP * program.scale
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = 0
    # It would take Ctrl-C for itself, and give it to the system's default afterwards.
    solver.parameters.catch_sigint_signal = False
    # The programs are small and nearly linear: cuts decide them, and presolving takes longer than solving.
    solver.parameters.linearization_level = 2
    solver.parameters.cp_model_presolve = False
    status = solver.solve(model)
    took = solver.response_proto.deterministic_time / most

    # Solution.
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return Solution(None, program.most, _STATUS[status], took)
    values = tuple(map(float, solver.response_proto.solution))
    return Solution(values, solver.best_objective_bound, _STATUS[status], took)
