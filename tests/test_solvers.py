"""CP-SAT, CBC and brute force agree on the round model; out of time, the heuristic's plan stands."""

import itertools
import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scheduler.policies import cp_sat, ilp, resolve
from scheduler.policies.board import Board
from scheduler.policies.edf import by_deadline, line_up, on_time
from scheduler.policies.exact import exact
from scheduler.policies.round_model import Program, Solution, build
from scheduler.problem import Gpu, Problem, Request, Stage
from scheduler.profile import Profile, StepTime

SOLVERS = {"cp-sat": cp_sat.solve, "ilp": ilp.solve}
SIDES = (256, 512, 1024, 2048)
PROFILE = Profile(
    [
        StepTime("step", side, side, degree, 1, 0.01 + (side / 1024) ** 2 * 0.1 / degree**0.8)
        for side in SIDES
        for degree in (1, 2, 4, 8)
    ]
    + [StepTime("encode", 0, 0, 1, 1, 0.02), StepTime("decode", 1024, 1024, 1, 1, 0.05)]
)


def problem(seed: int, requests: int, gpus: int) -> Problem:
    """A crowded moment: some requests in the middle of their steps, some GPUs busy."""
    rng = random.Random(seed)
    now = 100.0
    outstanding = []
    for number in range(requests):
        side = rng.choice(SIDES)
        stage = rng.choice([Stage.ENCODING, Stage.DENOISING, Stage.DENOISING, Stage.DECODING])
        steps = 0 if stage is Stage.DECODING else rng.randint(1, 30)
        least = steps * PROFILE.step(side, side, min(8, gpus)) + PROFILE.decode(side, side) + 0.02
        outstanding.append(
            Request(
                f"r{number}",
                side,
                side,
                stage,
                steps,
                ready_at=now + rng.choice([-1.0, 0.0, 0.2]),
                arrived_at=now - 1 - rng.random(),
                deadline=now + least * rng.uniform(0.9, 3.0),
                weight=rng.choice([1.0, 1.0, 2.5]),
            )
        )
    slots = tuple(Gpu(slot, now + rng.choice([0.0, 0.0, 0.1, 0.4])) for slot in range(gpus))
    return Problem(now, now + 1e-6, 0.25, slots, tuple(outstanding), PROFILE.limited(gpus))


def value(program: Program, columns: frozenset[int]) -> int | None:
    """The objective of a choice of columns; None where a row forbids it."""
    for row in program.rows:
        if sum(factor for index, factor in row.terms if index in columns) > row.limit:
            return None
    return sum(program.choices[index].gain for index in columns)


def brute_force(program: Program) -> int:
    """The best objective, by trying every choice of every request."""
    columns: dict[str, list[int | None]] = {}
    for index, choice in enumerate(program.choices):
        columns.setdefault(choice.work.request.id, [None]).append(index)
    values = (
        value(program, frozenset(index for index in combination if index is not None))
        for combination in itertools.product(*columns.values())
    )
    return max(found for found in values if found is not None)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("seed", range(30))
def test_solvers_find_what_brute_force_finds(name, seed):
    program = build(Board(problem(seed, requests=1 + seed % 5, gpus=(1, 2, 4, 8)[seed % 4])))
    if not program.choices:
        return
    solution = SOLVERS[name](program, frozenset(), 20.0)
    assert solution.status == "optimal"
    assert solution.chosen is not None
    best = brute_force(program)
    assert value(program, solution.chosen) == best
    assert solution.bound == pytest.approx(best, rel=1e-6)


@settings(max_examples=40, deadline=None)
@example(5117, 3, 1)  # a step that straddles another's deadline
@given(st.integers(0, 10_000), st.integers(1, 12), st.sampled_from([1, 2, 4, 8]))
def test_the_bound_is_never_below_what_a_line_up_reaches(seed, requests, gpus):
    board = Board(problem(seed, requests, gpus))
    program = build(board)
    if not program.choices:
        return
    solution = cp_sat.solve(program, frozenset(), 5.0)
    reached = on_time(line_up(board, by_deadline(board.works)))
    assert program.weight(solution.bound) >= reached - 1e-6


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12), st.sampled_from([2, 4, 8]))
def test_never_worse_than_the_heuristic_in_its_own_forecast(seed, requests, gpus):
    moment = problem(seed, requests, gpus)
    board = Board(moment)
    heuristic = on_time(line_up(board, by_deadline(board.works)))
    decision = resolve("cp-sat")(moment, 1.0).decision
    assert decision.objective >= heuristic - 1e-9
    assert decision.bound >= decision.objective - 1e-9


@pytest.mark.parametrize("name", ["cp-sat", "ilp"])
@pytest.mark.parametrize("seed", range(5))
def test_out_of_time_the_heuristic_stands(name, seed):
    moment = problem(seed, 10, 8)
    plan, fallback = resolve(name)(moment, 0.0), resolve("edf")(moment, 0.0)
    assert plan.assignments == fallback.assignments
    assert plan.late == fallback.late


def test_a_solver_without_an_answer_leaves_the_heuristic_standing():
    moment = problem(3, 10, 8)

    def silent(program: Program, _start: frozenset[int], _seconds: float) -> Solution:
        return Solution(None, float(sum(choice.gain for choice in program.choices)), "unknown")

    plan, fallback = exact(silent, 0.0)(moment, 1.0), resolve("edf")(moment, 1.0)
    assert plan.assignments == fallback.assignments


def test_a_solver_that_knows_better_is_followed():
    """The earliest deadline is the most expensive: giving it up saves four others."""
    now = 0.0
    wide = Request("wide", 2048, 2048, Stage.DENOISING, 18, now, now, deadline=2.9)
    small = [Request(f"s{n}", 1024, 1024, Stage.DENOISING, 20, now, now, deadline=3.0) for n in range(4)]
    gpus = tuple(Gpu(slot, now) for slot in range(4))
    moment = Problem(now, 1e-6, 0.25, gpus, (wide, *small), PROFILE.limited(4))
    edf, better = resolve("edf")(moment, 1.0), resolve("cp-sat")(moment, 1.0)
    assert edf.decision.objective == 1
    assert better.decision.objective == 4
    assert better.decision.source == "solver"
