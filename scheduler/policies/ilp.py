"""The round model as an integer program in PuLP; solved by CBC, which comes with it."""

import pulp

from scheduler.policies.exact import exact
from scheduler.policies.round_model import Program, Solution
from scheduler.problem import Policy

OVERRUN_S = 0.02
"""CBC is a process of its own: starting and reading it takes this much."""


def ilp() -> Policy:
    """The policy."""
    return exact(solve, OVERRUN_S)


def solve(program: Program, start: frozenset[int], seconds: float) -> Solution:
    """Solve a program, beginning at the columns of `start`."""
    # Variables: whether a choice is made.
    problem = pulp.LpProblem("round", pulp.LpMaximize)
    chosen = [problem.add_variable(f"x{index}", cat="Binary") for index in range(len(program.choices))]

    # Objective: the most weight on time, then the fewest GPU-seconds. In units of weight: CBC computes in
    # floating point, and its tolerances are relative to the largest numbers.
    problem += pulp.lpSum(
        choice.gain / program.scale * x for choice, x in zip(program.choices, chosen, strict=True)
    )

    # Constraints: one choice a request, blocks, energy.
    for row in program.rows:
        problem += pulp.lpSum(factor * chosen[index] for index, factor in row.terms) <= row.limit

    # Start.
    for index, x in enumerate(chosen):
        x.setInitialValue(int(index in start))

    # Solve.
    solver = pulp.PULP_CBC_CMD(msg=False, timeLimit=seconds, threads=1, warmStart=True, gapRel=0, gapAbs=0)
    status = problem.solve(solver)

    # Solution. PuLP does not pass CBC's bound on: without a proof there is only the trivial one.
    trivial = float(sum(max(0, choice.gain) for choice in program.choices))
    if problem.sol_status not in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible):
        return Solution(None, trivial, "unknown")
    made = frozenset(index for index, x in enumerate(chosen) if x.value() > 0.5)
    if status == pulp.LpStatusOptimal and problem.sol_status == pulp.LpSolutionOptimal:
        return Solution(made, float(sum(program.choices[index].gain for index in made)), "optimal")
    return Solution(made, trivial, "feasible")
