"""Policies that ask a solver: the heuristic's line-up is the start, the fallback and the judge.

The solver's program is a fluid (`fluid.py`); the line-up that runs its answer in whole steps and on places
tells what it really gives. It is taken where it is strictly better. Where the program has no better answer,
the line-up is proved best: no plan of this moment has more on time.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scheduler.policies.board import Board
from scheduler.policies.edf import by_deadline, finish
from scheduler.policies.fluid import Program, Row, Solution, build, tasks
from scheduler.policies.lineup import Lineup, Ranking, follow, line_up, on_time
from scheduler.policies.mix import TOLERANCE
from scheduler.policies.search import give_up, hurry, improve, promote
from scheduler.problem import Decision, Plan, Policy, Problem

Solver = Callable[[Program, Sequence[Row], frozenset[int], float], Solution]
"""Program, more rows, works that are on time in a solution to begin with, and seconds: what was found."""

SEARCH_EFFORT = 400
"""Placements to spend on a better line-up before the solver is asked."""
MAX_WORKS = 24
"""With more requests that could be on time, the solver would not get far in the time there is."""
SPARES_S = (0.0, 0.15, 0.4)
"""Kept free before deadlines in one program after the other, until an answer can be run in whole steps."""


def exact(solver: Solver, overrun_s: float) -> Policy:
    """The policy of a solver that may take `overrun_s` longer than it is told."""

    def plan(problem: Problem, budget_s: float) -> Plan:
        until = time.perf_counter() + budget_s - overrun_s
        board = Board(problem)
        order = by_deadline(board.works)
        first = line_up(board, Ranking(order))
        if _all_on_time(first) or budget_s <= overrun_s:
            return finish(first, _decision("heuristic", first))
        if not any(map(board.startable, board.works)) or not board.free:
            # No order can be given now, and what will be possible is for later plans to see.
            return finish(first, Decision("heuristic", "nothing to give", on_time(first), _possible(first)))
        best = improve(first, (hurry, promote, give_up), SEARCH_EFFORT)
        source = "search" if _value(best) > _value(first) else "heuristic"
        if _all_on_time(best):
            return finish(best, _decision(source, best))
        found = _ask(solver, best, until)
        if found.lineup is not best:
            source, best = "solver", found.lineup
        decision = Decision(source, found.status, on_time(best), found.bound, found.build_s, found.solve_s)
        return finish(best, decision)

    return plan


@dataclass(slots=True)
class _Answer:
    """The best line-up known, what no plan can exceed, and how that was found."""

    lineup: Lineup
    bound: float
    status: str = "out of time"
    build_s: float = 0.0
    solve_s: float = 0.0


def _ask(solver: Solver, best: Lineup, until: float) -> _Answer:
    """Ask for more on time than `best` has, until the program has no more or its answer can be run."""
    board, order = best.board, best.ranking.order
    answer = _Answer(best, _possible(best))
    if len(order) > MAX_WORKS:
        answer.status = "too many"
        return answer
    # Decodings are not in the program: they are placed first.
    apart = sum(work.request.weight for work in order if not work.steps)
    for spare_s in SPARES_S:
        began = time.perf_counter()
        program = build(board, order, spare_s)
        built = time.perf_counter()
        answer.build_s += built - began
        if built >= until or not program.works:
            break
        kept = frozenset(z for z, work in enumerate(program.works) if work.request.id in best.finish)
        solution = solver(program, [program.more_than(on_time(best) - apart)], kept, until - built)
        answer.solve_s += time.perf_counter() - built
        if spare_s == 0:
            # Only this program is a relaxation.
            answer.status = solution.status
            if solution.status == "infeasible":
                answer.status, answer.bound = "optimal", on_time(best)
            elif solution.values is not None:
                answer.bound = min(answer.bound, apart + program.weight(solution.bound))
        if solution.values is None:
            break
        candidate = follow(board, Ranking(order), tasks(program, solution.values))
        if _value(candidate) > _value(best):
            answer.lineup = candidate
            break
    return answer


def _possible(lineup: Lineup) -> float:
    return sum(work.request.weight for work in lineup.ranking.order)


def _all_on_time(lineup: Lineup) -> bool:
    return on_time(lineup) >= _possible(lineup) - TOLERANCE


def _decision(source: str, lineup: Lineup) -> Decision:
    """Of a line-up that the solver was not asked about."""
    status = "all on time" if _all_on_time(lineup) else "out of time"
    return Decision(source, status, on_time(lineup), _possible(lineup))


def _value(lineup: Lineup) -> tuple[float, float]:
    """Weight on time first, GPU-seconds second; rounded, so that noise is no improvement."""
    return round(on_time(lineup), 6), -round(lineup.gpu_seconds, 3)
