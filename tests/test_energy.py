"""The choice by GPU-seconds: never less than what plans reach, never more than fits, and worth its place."""

import itertools
import random
from dataclasses import replace

import pytest
from chaos import PATIENT
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.moments import at_random
from bench.runs import profile
from scheduler.policies import cp_sat, exact, ilp, resolve
from scheduler.policies.board import Board
from scheduler.policies.edf import by_deadline
from scheduler.policies.energy import Knapsack, build, densest, knapsack
from scheduler.policies.lineup import Ranking, line_up, on_time
from scheduler.policies.mix import ladder
from scheduler.problem import Problem

MACHINES = (("sd3-medium-4xa40", 4), ("flux1-dev-8xh100", 8))
SOLVERS = {"cp-sat": cp_sat.solve, "ilp": ilp.solve}


def crowd(name: str, gpus: int, requests: int, seed: int) -> Problem:
    """A moment with much more to do than time, and more time than any one of them takes."""
    rng = random.Random(seed)
    problem = at_random(profile(name), requests, 1, gpus, seed)
    hurried = tuple(
        replace(
            r,
            deadline=problem.now + rng.uniform(1.0, 5.0 + requests / 4),
            weight=rng.choice([1.0, 1.0, 3.0, 10.0]),
        )
        for r in problem.requests
    )
    return replace(problem, requests=hurried)


def sack(name: str, gpus: int, requests: int, seed: int) -> Knapsack:
    board = Board(crowd(name, gpus, requests, seed))
    return knapsack(board, by_deadline(board.works))


def fits(knapsack: Knapsack, chosen: set[int]) -> bool:
    load = 0.0
    for z, (need, room) in enumerate(zip(knapsack.needs, knapsack.rooms, strict=True)):
        load += need if z in chosen else 0.0
        if load > room + 1e-9:
            return False
    return True


def weight(works) -> float:
    return sum(work.request.weight for work in works)


machines = st.sampled_from(MACHINES)


@settings(max_examples=60, deadline=None)
@given(machine=machines, seed=st.integers(0, 10**6), requests=st.integers(1, 40))
def test_who_is_chosen_fits(machine, seed, requests):
    knapsack = sack(*machine, requests, seed)
    chosen = densest(knapsack)
    indices = {z for z, work in enumerate(knapsack.works) if work in chosen}
    assert len(indices) == len(chosen)
    assert fits(knapsack, indices)
    left_out = set(range(len(knapsack.works))) - indices
    assert not any(fits(knapsack, {*indices, z}) for z in left_out)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("seed", range(12))
def test_the_program_has_the_best_choice(name, seed, monkeypatch):
    monkeypatch.setattr(cp_sat, "EFFORT", 10.0)
    knapsack = sack(*MACHINES[seed % 2], 9, seed)
    count = len(knapsack.works)
    best = max(
        weight(knapsack.works[z] for z in chosen)
        for size in range(count + 1)
        for chosen in itertools.combinations(range(count), size)
        if fits(knapsack, set(chosen))
    )
    solution = SOLVERS[name](build(knapsack), [], frozenset(), PATIENT)
    assert solution.status == "optimal"
    assert solution.values is not None
    assert weight(w for w, z in zip(knapsack.works, solution.values, strict=True) if z > 0.5) == best
    assert weight(densest(knapsack)) <= best


@settings(max_examples=40, deadline=None)
@given(machine=machines, seed=st.integers(0, 10**6), requests=st.integers(13, 40))
def test_no_plan_of_a_crowd_is_above_its_bound(machine, seed, requests):
    name, gpus = machine
    moment = crowd(name, gpus, requests, seed)
    decision = resolve("cp-sat")(moment, PATIENT).decision
    board = Board(moment)
    reached = on_time(line_up(board, Ranking(by_deadline(board.works))))
    assert reached <= decision.objective + 1e-6
    assert decision.objective <= decision.bound + 1e-6
    assert decision.status != "too many"


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), steps=st.integers(1, 60), share=st.floats(0.0, 1.0))
def test_no_mix_takes_fewer_gpu_seconds_than_the_least(seed, steps, share):
    rng = random.Random(seed)
    name, gpus = rng.choice(MACHINES)
    side = rng.choice((256, 512, 1024, 2048))
    rungs = ladder(profile(name), side, side, gpus)
    seconds = steps * (rungs.fastest + share * (rungs.step[1] - rungs.fastest))
    mix = rungs.cheapest(steps, seconds)
    assert mix is not None
    least = rungs.least_gpu_seconds(steps, seconds)
    assert least <= mix.gpu_seconds + 1e-9
    # Two degrees and whole steps: never farther from it than two steps at the widest.
    assert mix.gpu_seconds <= least + 2 * gpus * rungs.step[1]


def test_it_is_worth_its_place(monkeypatch):
    """Where all have time and few fit, a search of 200 placements finds much less without it."""
    moments = [crowd("flux1-dev-8xh100", 8, 30, seed) for seed in range(8)]
    with_it = sum(resolve("search")(moment, PATIENT).decision.objective for moment in moments)
    monkeypatch.setattr(exact, "start", lambda lineup: lineup)
    without = sum(resolve("search")(moment, PATIENT).decision.objective for moment in moments)
    assert with_it > 1.05 * without, (with_it, without)
