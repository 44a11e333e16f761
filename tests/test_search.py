"""The local search, which goes on from where rankings differ, against placing all from the beginning."""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.moments import at_random
from bench.runs import profile
from scheduler.policies.board import Board
from scheduler.policies.edf import by_deadline
from scheduler.policies.exact import MOVES
from scheduler.policies.lineup import Ranking, line_up, on_time
from scheduler.policies.search import SAVING, improve

MACHINES = (("sd3-medium-4xa40", 4), ("flux1-dev-8xh100", 8))


def rush(name: str, gpus: int, requests: int, seed: int) -> Board:
    """A moment with too little time for all; weights differ in half of them."""
    rng = random.Random(seed)
    problem = at_random(profile(name), requests, 1, gpus, seed)
    weights = rng.choice([(1.0,), (1.0, 0.3, 2.5)])
    hurried = tuple(
        replace(r, deadline=problem.now + rng.uniform(0.1, 0.5) * (r.deadline - problem.now), weight=w)
        for r in problem.requests
        for w in [rng.choice(weights)]
    )
    return Board(replace(problem, requests=hurried, margin_s=rng.choice([0.0, 0.1])))


def improved(board: Board, effort: int):
    """As `improve` says, in the plainest way."""
    best = line_up(board, Ranking(by_deadline(board.works)))
    cost = max(1, len(best.ranking.order))
    found = True
    while found and effort >= cost:
        found = False
        lost = [work for work in best.ranking.order if work.request.id not in best.finish]
        for ranking in (ranking for work in lost for move in MOVES for ranking in move(best.ranking, work)):
            other = line_up(board, ranking)
            effort -= cost
            more = on_time(other) - on_time(best)
            if more > 1e-6 or (abs(more) <= 1e-6 and other.gpu_seconds < (1 - SAVING) * best.gpu_seconds):
                best, found = other, True
                break
            if effort < cost:
                break
    return best


@pytest.mark.parametrize(("name", "gpus"), MACHINES)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), requests=st.integers(2, 16))
def test_the_search_is_what_it_is_with_every_ranking_placed_from_the_beginning(name, gpus, seed, requests):
    board = rush(name, gpus, requests, seed)
    plain = improved(board, 300)
    found = improve(line_up(board, Ranking(by_deadline(board.works))), MOVES, 300)
    assert found.ranking == plain.ranking
    assert found.finish == plain.finish
    assert found.gpu_seconds == plain.gpu_seconds
    assert found.assignments() == plain.assignments()
    assert found.free == plain.free
    assert all(found.reserved([slot]) == plain.reserved([slot]) for slot in range(gpus))


def test_there_is_something_to_improve_in_these_moments():
    boards = [rush(*machine, 16, seed) for machine in MACHINES for seed in range(20)]
    first = [line_up(board, Ranking(by_deadline(board.works))) for board in boards]
    found = [improve(lineup, MOVES, 300) for lineup in first]
    assert sum(map(on_time, found)) > sum(map(on_time, first)) + 10
    assert any(lineup.ranking.guests for lineup in found)
    assert any(lineup.ranking.narrowest for lineup in found)
