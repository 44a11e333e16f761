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
from scheduler.policies.energy import Loads, build, densest, loads_of, start
from scheduler.policies.lineup import Ranking, line_up, on_time
from scheduler.policies.mix import ladder
from scheduler.policies.search import improve
from scheduler.problem import Gpu, Problem, Request, Stage

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


def loads(name: str, gpus: int, requests: int, seed: int) -> Loads:
    board = Board(crowd(name, gpus, requests, seed))
    return loads_of(board, by_deadline(board.works))


def fits(loads: Loads, chosen: set[int]) -> bool:
    load = 0.0
    for z, (need, room) in enumerate(zip(loads.needs, loads.rooms, strict=True)):
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
    found = loads(*machine, requests, seed)
    chosen = densest(found)
    indices = {z for z, work in enumerate(found.works) if work in chosen}
    assert len(indices) == len(chosen)
    assert fits(found, indices)
    left_out = set(range(len(found.works))) - indices
    assert not any(fits(found, {*indices, z}) for z in left_out)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("seed", range(12))
def test_the_program_has_the_best_choice(name, seed, monkeypatch):
    monkeypatch.setattr(cp_sat, "EFFORT", 10.0)
    found = loads(*MACHINES[seed % 2], 9, seed)
    count = len(found.works)
    best = max(
        weight(found.works[z] for z in chosen)
        for size in range(count + 1)
        for chosen in itertools.combinations(range(count), size)
        if fits(found, set(chosen))
    )
    solution = SOLVERS[name](build(found), [], frozenset(), PATIENT)
    assert solution.status == "optimal"
    assert solution.values is not None
    assert weight(w for w, z in zip(found.works, solution.values, strict=True) if z > 0.5) == best
    assert weight(densest(found)) <= best


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


@settings(max_examples=40, deadline=None)
@given(machine=machines, seed=st.integers(0, 10**6), requests=st.integers(13, 30), alike=st.booleans())
def test_no_plan_is_above_the_best_choice(machine, seed, requests, alike):
    """Weights with many digits, too, and crowds of one small size, whose steps are shared."""
    moment = crowd(*machine, requests, seed)
    changed = [
        replace(r, weight=r.weight / 3, width=256 if alike else r.width, height=256 if alike else r.height)
        for r in moment.requests
    ]
    board = Board(replace(moment, requests=tuple(changed)))
    order = by_deadline(board.works)
    program = build(loads_of(board, order))
    apart = weight(work for work in order if not work.steps)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cp_sat, "EFFORT", 10.0)
        limit = program.weight(cp_sat.solve(program, [], frozenset(), PATIENT).bound) if program.works else 0
    reached = improve(start(line_up(board, Ranking(order))), exact.MOVES, 1000)
    assert on_time(reached) <= apart + limit + 1e-6


def test_a_solver_finds_more_in_a_crowd():
    moments = [crowd("flux1-dev-8xh100", 8, 30, seed) for seed in range(16)]
    assert "solver" in [resolve("cp-sat")(moment, PATIENT).decision.source for moment in moments]


@pytest.mark.parametrize("policy", SOLVERS)
def test_a_crowd_of_nothing_but_decodings(policy):
    times = profile("flux1-dev-8xh100").limited(1)
    due = 1000.0 + 5.5 * times.decode(1024, 1024)
    decodings = tuple(
        Request(f"r{n}", 1024, 1024, Stage.DECODING, 0, 1000.0, 995.0, due, slots=(0,)) for n in range(13)
    )
    moment = Problem(1000.0, 1000.1, 0.25, (Gpu(0, 1000.0),), decodings, times)
    assert resolve(policy)(moment, PATIENT).decision.objective == 5


def test_weights_of_less_than_a_thousandth_count():
    moment = crowd("flux1-dev-8xh100", 8, 40, 1)
    feathers = replace(moment, requests=tuple(replace(r, weight=0.0004) for r in moment.requests))
    alike = replace(moment, requests=tuple(replace(r, weight=1.0) for r in moment.requests))
    count = resolve("cp-sat")(alike, PATIENT).decision.objective
    assert resolve("cp-sat")(feathers, PATIENT).decision.bound >= 0.0004 * count - 1e-9


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
    monkeypatch.setattr(exact, "start", lambda lineup, _until: lineup)
    without = sum(resolve("search")(moment, PATIENT).decision.objective for moment in moments)
    assert with_it > 1.05 * without, (with_it, without)
