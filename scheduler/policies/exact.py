"""Policies that ask a solver: the heuristic's line-up is the start, the fallback and the judge.

The solver's program is a fluid (`fluid.py`); the line-up that runs its answer in whole steps and on places
tells what it really gives. Where that is nothing, a schedule of the same requests is looked for (`beam.py`).
What comes of it is taken where it is strictly better. Where the program has no better answer, the line-up is
proved best: no plan of this moment has more on time.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from scheduler.policies.beam import EFFORT as WAYS
from scheduler.policies.beam import joined, schedule
from scheduler.policies.board import Board, Work
from scheduler.policies.edf import by_deadline, finish
from scheduler.policies.energy import ROOM, ids_of, loads_of, serving, start
from scheduler.policies.energy import build as build_choice
from scheduler.policies.fluid import Program, Row, Solution, build, sharing, tasks
from scheduler.policies.interrupt import cut, yielding
from scheduler.policies.lineup import Lineup, Ranking, Task, follow, least_gpu_seconds, line_up, on_time
from scheduler.policies.mix import TOLERANCE
from scheduler.policies.prices import prices
from scheduler.policies.search import give_up, hurry, improve, join, promote
from scheduler.problem import NOT_RUN, OPTIMAL, Decision, Plan, Policy, Problem

Solver = Callable[[Program, Sequence[Row], frozenset[int], float, float], Solution]
"""Program, more rows, works that are on time in a solution to begin with, seconds, and the share of a
decision's effort: what was found."""

SEARCH_EFFORT = 200
"""Placements to spend on a better line-up before the solver is asked."""
MOVES = (join, hurry, promote, give_up)
JUST_NOW_S = 0.05
"""Arrivals of so long ago have their first plan now."""
MAX_WORKS, MAX_CROWD = 12, 60
"""With more requests that could be on time, a solver would not get far in the time there is, with the fluid
and with GPU-seconds alone."""
TRIES = 4
"""Choices of a solver to try, each with other requests on time."""
LEAST_EFFORT = 0.2
"""Share of a decision's effort without which no solver gets anywhere."""


def search() -> Policy:
    """The policy that asks no solver: what it has in common with those that do."""
    return exact(None, 0.0)


def exact(solver: Solver | None, overrun_s: float, crowd: int = MAX_CROWD, tries: int = TRIES) -> Policy:
    """The policy of a solver that may overrun its time by `overrun_s`, for so many requests at most."""

    def plan(problem: Problem, budget_s: float) -> Plan:
        until = time.perf_counter() + budget_s - overrun_s
        board = cut(problem, problem.running) if _has_arrival(problem) else yielding(problem)
        first = best = line_up(board, Ranking(by_deadline(board.works)))
        if _all_on_time(first) or budget_s <= overrun_s:
            return finish(first, _decision("heuristic", first))
        if _can_give(board):
            best = improve(start(first, until), MOVES, SEARCH_EFFORT)
        untried = len(board.ended) < len(problem.running)
        if untried and not _all_on_time(best) and time.perf_counter() < until:
            board = cut(problem, problem.running)
            other = line_up(board, Ranking(by_deadline(board.works)))
            other = improve(start(other, until), MOVES, SEARCH_EFFORT)
            if on_time(other) > on_time(best) + TOLERANCE:
                best = other
        source = "search" if best is not first else "heuristic"
        if _all_on_time(best):
            return finish(best, _decision(source, best))
        if not _can_give(board):
            return finish(best, _decision(source, best, "nothing to give"))
        if solver is None:
            return finish(best, _decision(source, best, "not asked"))
        found = _ask(solver, board, best, until, crowd, tries)
        if found.lineup is not best:
            source, best = "solver", found.lineup
        decision = replace(
            _decision(source, best),
            status=found.status,
            bound=found.bound,
            build_s=found.build_s,
            solve_s=found.solve_s,
        )
        return finish(best, decision)

    return plan


def _has_arrival(problem: Problem) -> bool:
    """Whether somebody has just come, who need not wait for the end of orders under way."""
    since = problem.now - JUST_NOW_S
    return bool(problem.running) and any(not r.slots and r.arrived_at > since for r in problem.requests)


def _can_give(board: Board) -> bool:
    """Whether any order can be given now; if not, what will be possible is for later plans to see."""
    return board.free > 0 and any(map(board.startable, board.works))


@dataclass(slots=True)
class _Answer:
    """The best line-up known, what no plan can exceed, and how that was found."""

    lineup: Lineup
    bound: float
    status: str = "out of time"
    build_s: float = 0.0
    solve_s: float = 0.0


def _ask(solver: Solver, board: Board, best: Lineup, until: float, crowd: int, tries: int) -> _Answer:
    """Ask for more on time than `best` has."""
    answer, order = _Answer(best, _possible(best)), by_deadline(board.works)
    # Decodings are not in the program: they are placed first.
    apart = sum(work.request.weight for work in order if not work.steps)
    if len(order) > crowd:
        answer.status = "too many"
        return answer
    if len(order) > MAX_WORKS:
        _ask_of_crowd(solver, board, answer, apart, until)
        return answer
    began = time.perf_counter()
    program = build(board, order)
    built = time.perf_counter()
    answer.build_s = built - began
    if built >= until or not program.works:
        return answer
    kept = frozenset(z for z, work in enumerate(program.works) if work.request.id in best.finish)
    more = program.more_than(on_time(best) - apart)
    rows, effort, ways, proven = [more], 1.0, WAYS, True
    limit = Solution(None, math.inf, "unknown")
    for _ in range(tries):
        left = until - time.perf_counter()
        if left <= 0 or effort < LEAST_EFFORT:
            break
        solution = solver(program, rows, kept, left, effort)
        effort -= solution.effort
        if proven:
            limit = solution
        if solution.values is None or not program.chosen(solution.values):
            break
        trial = _try(board, order, program, solution.values, ways, until)
        if on_time(trial.lineup) > on_time(best) + TOLERANCE:
            answer.lineup = trial.lineup
            break
        # Others, then. Only if these are known to be impossible does that say something of the bound.
        rows.append(program.not_all(solution.values))
        ways -= trial.ways
        proven = proven and not trial.possible
    if sharing(order):
        # The program is no relaxation of plans with batches.
        limit = _limit(solver, board, order, more, until, limit)
    answer.solve_s = time.perf_counter() - built
    _note_bound(answer, limit, program, apart)
    return answer


class _Trial(NamedTuple):
    """A line-up with all on time whom a solution has so, or with the most of them that was found.

    `possible`: there may be one with all; for a schedule so many `ways` to go on were looked at.
    """

    lineup: Lineup
    possible: bool = True
    ways: int = 0


def _try(
    board: Board,
    order: tuple[Work, ...],
    program: Program,
    values: Sequence[float],
    ways: int,
    until: float,
) -> _Trial:
    """Run a solution as it is, or else look for a schedule of those whom it has on time."""
    chosen = program.chosen(values)
    ids = ids_of(chosen)
    found = []

    def runs(steps: Iterable[Task]) -> bool:
        found.append(follow(board, Ranking(order), steps))
        return ids <= found[-1].finish.keys()

    if any(map(runs, tasks(program, values))):
        return _Trial(found[-1])
    known = prices(board, chosen)
    if known is None or known.impossible:
        return _Trial(max(found, key=on_time), possible=known is None)
    steps, spent = schedule(board, chosen, known, ways, until=until)
    if steps is not None and (runs(joined(steps)) or runs(steps)):
        return _Trial(found[-1], ways=spent)
    return _Trial(max(found, key=on_time), ways=spent)


def _ask_of_crowd(solver: Solver, board: Board, answer: _Answer, apart: float, until: float) -> None:
    """The same where there are so many that only their GPU-seconds can be looked at."""
    best = answer.lineup
    order = best.ranking.order if best.board is board else by_deadline(board.works)
    began = time.perf_counter()
    loads, effort = loads_of(board, order), 1.0
    for share in ROOM:
        program = build_choice(loads.scaled(share))
        built = time.perf_counter()
        answer.build_s += built - began
        if built >= until or not program.works or effort < LEAST_EFFORT:
            break
        kept = frozenset(z for z, work in enumerate(program.works) if work.request.id in best.finish)
        solution = solver(program, [program.more_than(on_time(best) - apart)], kept, until - built, effort)
        effort -= solution.effort
        began = time.perf_counter()
        answer.solve_s += began - built
        if share == 1.0:
            _note_bound(answer, solution, program, apart)
        if solution.values is None:
            break
        candidate = serving(board, order, ids_of(program.chosen(solution.values)))
        if on_time(candidate) > on_time(best) + TOLERANCE:
            answer.lineup = candidate
            break


def _note_bound(answer: _Answer, limit: Solution, program: Program, apart: float) -> None:
    """What a relaxation says of more than the best line-up has on time."""
    answer.status = limit.status
    if limit.status == "infeasible":
        answer.status, answer.bound = OPTIMAL, on_time(answer.lineup)
    elif limit.values is not None:
        answer.bound = min(answer.bound, apart + program.weight(limit.bound))
        if limit.status == OPTIMAL and answer.bound > on_time(answer.lineup) + TOLERANCE:
            answer.status = NOT_RUN


def _limit(
    solver: Solver,
    board: Board,
    order: Sequence[Work],
    more: Row,
    until: float,
    alone: Solution,
) -> Solution:
    """Whether a plan with batches could have `more`, where plans without could as `alone` says."""
    left, effort = until - time.perf_counter(), 1.0 - alone.effort
    if alone.status != "infeasible" or left <= 0 or effort < LEAST_EFFORT:
        return Solution(None, math.inf, "feasible")
    return solver(build(board, order, batches=True), [more], frozenset(), left, effort)


def _possible(lineup: Lineup) -> float:
    return sum(work.request.weight for work in lineup.ranking.order)


def _all_on_time(lineup: Lineup) -> bool:
    return on_time(lineup) >= _possible(lineup) - TOLERANCE


def _decision(source: str, lineup: Lineup, why: str = "out of time") -> Decision:
    """Of a line-up that the solver was not asked about, if not because it has all on time, then for `why`."""
    status = "all on time" if _all_on_time(lineup) else why
    return Decision(
        source,
        status,
        objective=on_time(lineup),
        bound=_possible(lineup),
        gpu_seconds=lineup.gpu_seconds,
        least_gpu_seconds=least_gpu_seconds(lineup),
    )
