"""Policies that ask a solver: the heuristic's line-up is the start, the fallback and the judge.

The solver's program knows energy, not places and steps; so its answer only ranks the requests, and a
line-up in that order tells what it really gives. It is taken where it is strictly better.
"""

import time
from collections.abc import Callable

from scheduler.policies.board import Board
from scheduler.policies.edf import by_deadline, finish, line_up, on_time
from scheduler.policies.lineup import Lineup
from scheduler.policies.mix import TOLERANCE
from scheduler.policies.round_model import Program, Solution, build
from scheduler.problem import Decision, Plan, Policy, Problem

Solver = Callable[[Program, frozenset[int], float], Solution]
"""Program, columns of a solution to begin with, and seconds: what was found in time."""


def exact(solver: Solver, overrun_s: float) -> Policy:
    """The policy of a solver that may take `overrun_s` longer than it is told."""

    def plan(problem: Problem, budget_s: float) -> Plan:
        began = time.perf_counter()
        board = Board(problem)
        incumbent = line_up(board, by_deadline(board.works))
        objective = on_time(incumbent)
        possible = sum(w.request.weight for w in board.works if w.has_deadline and not w.late)
        if objective >= possible - TOLERANCE:
            return finish(incumbent, Decision("heuristic", "all on time", objective, possible))
        program = build(board)
        built = time.perf_counter()
        left = budget_s - (built - began) - overrun_s
        if left <= 0:
            decision = Decision("heuristic", "out of time", objective, possible, built - began)
            return finish(incumbent, decision)
        solution = solver(program, _columns(program, incumbent), left)
        solved = time.perf_counter() - built
        bound = min(possible, program.weight(solution.bound))
        source, best = "heuristic", incumbent
        if solution.chosen is not None:
            candidate = _line_up(board, program, solution.chosen)
            if _value(candidate) > _value(best):
                source, best = "solver", candidate
        decision = Decision(source, solution.status, on_time(best), bound, built - began, solved)
        return finish(best, decision)

    return plan


def _value(lineup: Lineup) -> tuple[float, float]:
    """Weight on time first, GPU-seconds second; rounded, so that noise is no improvement."""
    return round(on_time(lineup), 6), -round(lineup.gpu_seconds, 3)


def _columns(program: Program, lineup: Lineup) -> frozenset[int]:
    """The line-up as columns, as far as it has them."""
    degrees = {key: piece.block.bit_count() for key, piece in lineup.pieces.items() if piece.steps}
    wanted = {(key, degrees.get(key, 0)) for key in lineup.finish}
    found: dict[tuple[str, int], int] = {}
    for index, choice in enumerate(program.choices):
        if (key := (choice.work.request.id, choice.degree)) in wanted:
            found.setdefault(key, index)
    return frozenset(found.values())


def _line_up(board: Board, program: Program, chosen: frozenset[int]) -> Lineup:
    """A line-up that serves the chosen first, by deadline."""
    admitted = {program.choices[index].work.request.id for index in chosen}
    ranked = by_deadline(board.works)
    return line_up(
        board,
        [work for work in ranked if work.request.id in admitted]
        + [work for work in ranked if work.request.id not in admitted],
    )
