"""CP-SAT, CBC and brute force agree on the fluid model; out of time, the heuristic's plan stands."""

import itertools
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from chaos import PATIENT
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from scheduler.limits import MAX_DEADLINE_S, MAX_WEIGHT
from scheduler.policies import cp_sat, ilp, resolve
from scheduler.policies.board import Board
from scheduler.policies.edf import by_deadline
from scheduler.policies.exact import exact
from scheduler.policies.fluid import STEP_UNIT, Program, Solution, build
from scheduler.policies.lineup import Ranking, line_up, on_time
from scheduler.policies.search import give_up, hurry, improve, promote
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


def brute_force(program: Program) -> int:
    """The most weight on time, in the program's units: a linear program for every choice of requests."""
    rows = np.zeros((len(program.rows), len(program.uppers)))
    for index, row in enumerate(program.rows):
        for column, factor in row.terms:
            rows[index, column] = factor
    limits = [row.limit for row in program.rows]
    best = 0
    for chosen in itertools.product((0, 1), repeat=len(program.works)):
        weight = sum(
            round(1000 * work.request.weight) for work, z in zip(program.works, chosen, strict=True) if z
        )
        if weight > best:
            bounds = [(z, z) for z in chosen] + [(0, upper) for upper in program.uppers[len(chosen) :]]
            if linprog(np.zeros(len(bounds)), rows, limits, bounds=bounds).status == 0:
                best = weight
    return best


def solved(program: Program, name: str) -> int:
    """The most weight on time that a solver finds, in the program's units."""
    solution = SOLVERS[name](program, [], frozenset(), PATIENT)
    assert solution.status == "optimal"
    assert solution.values is not None
    found = solution.values
    for row in program.rows:
        assert sum(factor * found[column] for column, factor in row.terms) <= row.limit + 1e-3 * STEP_UNIT
    weight = sum(
        round(1000 * w.request.weight) * round(z) for w, z in zip(program.works, found, strict=False)
    )
    assert program.weight(solution.bound) >= weight / 1000 - 1e-6
    return weight


@pytest.fixture
def _enough_effort(monkeypatch):
    monkeypatch.setattr(cp_sat, "EFFORT", 10.0)


@pytest.mark.usefixtures("_enough_effort")
@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("seed", range(30))
def test_solvers_find_what_brute_force_finds(name, seed):
    board = Board(problem(seed, requests=1 + seed % 6, gpus=(1, 2, 4, 8)[seed % 4]))
    program = build(board, by_deadline(board.works))
    if program.works:
        assert solved(program, name) == brute_force(program)


@pytest.mark.parametrize("seed", range(12))
def test_what_is_wanted_idle_costs_nobody_the_time(seed):
    board = Board(problem(seed, requests=5, gpus=(2, 4, 8)[seed % 3]))
    works = by_deadline(board.works)
    # No steps can be shared here, so that the second is the same program but for what is left idle.
    assert brute_force(build(board, works)) == brute_force(build(board, works, batches=True))


@pytest.mark.usefixtures("_enough_effort")
@pytest.mark.parametrize("name", SOLVERS)
def test_of_answers_with_as_much_on_time_the_one_that_can_be_run_is_taken(name):
    """Two of a size, one due long after the other, on one GPU: neither is to end at the last moment."""
    now, step = 100.0, PROFILE.step(512, 512, 1)
    due = {"first": now + 20 * step, "second": now + 40 * step}
    outstanding = tuple(
        Request(key, 512, 512, Stage.DENOISING, 10, now, now, at + PROFILE.decode(512, 512))
        for key, at in due.items()
    )
    board = Board(Problem(now, now, 0.25, (Gpu(0, now),), outstanding, PROFILE.limited(1)))
    program = build(board, by_deadline(board.works))
    solution = SOLVERS[name](program, [], frozenset(), PATIENT)
    used = {use.span: 0.0 for _, use in program.uses}
    for column, use in program.uses:
        used[use.span] += solution.values[column] / (20_000 * step)
    assert used == {0: pytest.approx(0.5, abs=0.02), 1: pytest.approx(0.5, abs=0.02)}


@pytest.mark.usefixtures("_enough_effort")
@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("seed", range(10))
def test_a_row_asks_for_more_than_is_known(name, seed):
    board = Board(problem(seed, 5, 4))
    program = build(board, by_deadline(board.works))
    best = brute_force(program) / 1000
    solve = SOLVERS[name]
    assert solve(program, [program.more_than(best)], frozenset(), PATIENT).status == "infeasible"
    if best > 0:
        assert solve(program, [program.more_than(best - 0.5)], frozenset(), PATIENT).values is not None


@settings(max_examples=40, deadline=None)
@example(5117, 3, 1)  # a step that straddles another's deadline
@given(st.integers(0, 10_000), st.integers(1, 12), st.sampled_from([1, 2, 4, 8]))
def test_the_bound_is_never_below_what_a_line_up_reaches(seed, requests, gpus):
    board = Board(problem(seed, requests, gpus))
    works = by_deadline(board.works)
    program = build(board, works)
    if not program.works:
        return
    bound = cp_sat.solve(program, [], frozenset(), PATIENT).bound
    first = line_up(board, Ranking(works))
    better = improve(first, (hurry, promote, give_up), 200)
    reached = max(
        sum(work.request.weight for work in program.works if work.request.id in lineup.finish)
        for lineup in (first, better)
    )
    assert program.weight(bound) >= reached - 1e-6


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12), st.sampled_from([2, 4, 8]))
def test_never_worse_than_the_heuristic_in_its_own_forecast(seed, requests, gpus):
    moment = problem(seed, requests, gpus)
    board = Board(moment)
    heuristic = on_time(line_up(board, Ranking(by_deadline(board.works))))
    decision = resolve("cp-sat")(moment, PATIENT).decision
    assert decision.objective >= heuristic - 1e-9
    assert decision.bound >= decision.objective - 1e-9
    assert decision.gpu_seconds_gap >= -1e-6


@pytest.mark.parametrize("name", ["cp-sat", "ilp"])
@pytest.mark.parametrize("seed", range(5))
def test_out_of_time_the_heuristic_stands(name, seed):
    moment = problem(seed, 10, 8)
    plan, fallback = resolve(name)(moment, 0.0), resolve("edf")(moment, 0.0)
    assert plan.assignments == fallback.assignments
    assert plan.late == fallback.late


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_ctrl_c_is_whose_it_was():
    def caught() -> str:
        status = Path("/proc/self/status").read_text()
        return next(line for line in status.splitlines() if line.startswith("SigCgt"))

    board, before = Board(problem(3, 10, 8)), caught()
    assert cp_sat.solve(build(board, by_deadline(board.works)), [], frozenset(), PATIENT).values
    assert caught() == before


def test_weights_and_deadlines_as_large_as_a_request_may_ask_for_leave_the_heuristic_standing():
    """Together they are beyond 64 bits."""
    moment = problem(8, 6, 8)
    changes = [{"deadline": moment.now + MAX_DEADLINE_S}, *[{"weight": MAX_WEIGHT}] * 5]
    outstanding = tuple(replace(r, **c) for r, c in zip(moment.requests, changes, strict=True))
    moment = replace(moment, requests=outstanding)
    assert resolve("cp-sat")(moment, PATIENT).decision.status == "failed"


def test_no_proof_comes_of_a_moment_that_is_too_short():
    """CBC takes 0.00035 s for no time at all, and what it has not solved for infeasible."""
    board = Board(problem(3, 10, 8))
    program = build(board, by_deadline(board.works))
    assert ilp.solve(program, [], frozenset(), 0.00035).status == "unknown"


def test_cbc_has_what_writing_the_model_leaves_of_the_time(monkeypatch):
    board = Board(problem(1, 4, 8))
    program = build(board, by_deadline(board.works))
    known, given = ilp.pulp.getSolver, []

    def solver(name, timeLimit, **options):
        given.append(timeLimit)
        return known(name, timeLimit=PATIENT, **options)

    clock = itertools.count(step=2.0)
    monkeypatch.setattr(ilp.pulp, "getSolver", solver)
    monkeypatch.setattr(ilp.time, "perf_counter", lambda: next(clock))
    ilp.solve(program, [], frozenset(), 5.0)
    assert given == [3.0]
    assert ilp.solve(program, [], frozenset(), 2.0).status == "unknown"
    assert given == [3.0]


def test_a_solver_without_an_answer_leaves_the_heuristic_standing():
    moment = problem(3, 10, 8)

    def silent(program: Program, _more, _start: frozenset[int], *_limits: float) -> Solution:
        return Solution(None, float(sum(gain for gain in program.gains if gain > 0)), "unknown")

    plan = exact(silent, 0.0)(moment, PATIENT)
    assert plan.decision.source != "solver"
    assert plan.decision.objective >= resolve("edf")(moment, PATIENT).decision.objective


@pytest.mark.parametrize(("effort", "source"), [(0, "solver"), (400, "search")])
def test_who_knows_better_is_followed(monkeypatch, effort, source):
    """The earliest deadline is the most expensive: giving it up saves four others."""
    monkeypatch.setattr("scheduler.policies.exact.SEARCH_EFFORT", effort)
    monkeypatch.setattr("scheduler.policies.exact.start", lambda lineup, _until: lineup)
    now = 0.0
    wide = Request("wide", 2048, 2048, Stage.DENOISING, 18, now, now, deadline=2.9)
    small = [Request(f"s{n}", 1024, 1024, Stage.DENOISING, 20, now, now, deadline=3.0) for n in range(4)]
    gpus = tuple(Gpu(slot, now) for slot in range(4))
    moment = Problem(now, 1e-6, 0.25, gpus, (wide, *small), PROFILE.limited(4))
    edf, better = resolve("edf")(moment, PATIENT), resolve("cp-sat")(moment, PATIENT)
    assert edf.decision.objective == 1
    assert better.decision.objective == 4
    assert better.decision.source == source


def test_an_ilp_solver_by_name():
    moment = problem(3, 6, 8)
    assert resolve("ilp:cbc")(moment, PATIENT).assignments == resolve("ilp")(moment, PATIENT).assignments
    with pytest.raises(ValueError, match="installed are cbc"):
        resolve("ilp:nothing")


@pytest.mark.skipif(shutil.which("glpsol") is None, reason="GLPK is not installed")
@pytest.mark.parametrize("seed", range(6))
def test_glpk_agrees_with_brute_force(seed):
    board = Board(problem(seed, 4, 8))
    program = build(board, by_deadline(board.works))
    solution = ilp.solve(program, [], frozenset(), PATIENT, solver="glpk")
    assert solution.values is not None
    weights = [round(1000 * work.request.weight) for work in program.works]
    reached = sum(w * round(z) for w, z in zip(weights, solution.values, strict=False))
    assert reached == brute_force(program)


def test_a_solver_that_fails_is_an_answer_and_leaves_no_files(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    board = Board(problem(1, 4, 8))
    program = build(board, by_deadline(board.works))
    known = ilp.pulp.getSolver

    def broken(*args, **options):
        command = known(*args, **options)
        command.path = shutil.which("true")
        return command

    monkeypatch.setattr(ilp.pulp, "getSolver", broken)
    solution = ilp.solve(program, [], frozenset(), 20.0)
    assert solution.values is None
    assert solution.status.startswith("failed")
    assert list(tmp_path.iterdir()) == []
