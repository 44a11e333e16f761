"""The beam's schedules in whole steps, and the prices that guide it."""

import itertools
import time

from test_solvers import problem

from scheduler.placement import Layout
from scheduler.policies import beam, resolve
from scheduler.policies.board import Board
from scheduler.policies.prices import prices
from scheduler.problem import Gpu, Problem, Request, Stage
from scheduler.profile import Profile, StepTime

SIDE = 512


def moment(profile: Profile, steps: list[int], due: list[float], free_at: list[float]) -> Problem:
    """Requests of one size, to be denoised from 0 on."""
    outstanding = tuple(
        Request(f"r{n}", SIDE, SIDE, Stage.DENOISING, count, 0.0, 0.0, at)
        for n, (count, at) in enumerate(zip(steps, due, strict=True))
    )
    return Problem(0.0, 0.0, 0.25, tuple(Gpu(*entry) for entry in enumerate(free_at)), outstanding, profile)


def test_what_just_fits_is_not_called_impossible():
    """One GPU without a gap: the linear program's value is 0, but for the last digits."""
    for step in (0.008, 0.01, 0.02, 0.025, 0.04, 0.05, 0.08, 0.1, 0.125, 0.2):
        profile = Profile([StepTime("step", SIDE, SIDE, 1, 1, step)])
        for steps in ([3, 2, 4, 1], [1, 2], [5, 5, 6, 1, 2], [6, 3, 1]):
            due = [sum(steps[: n + 1]) * step for n in range(len(steps))]
            board = Board(moment(profile, steps, due, [0.0]))
            assert not prices(board, board.works).impossible, (step, steps)
            board = Board(moment(profile, steps, [due[-1] - step / 2] * len(steps), [0.0]))
            assert prices(board, board.works).impossible, (step, steps)


def placed(layout: Layout, free: int, degrees: tuple[int, ...]) -> bool:
    """Whether there are places for all of them at once."""
    for degree in sorted(degrees, reverse=True):
        block = layout.find(degree, free)
        if block is None:
            return False
        free &= ~block
    return True


def test_who_may_begin_finds_a_block_whatever_runs_already():
    """Four GPUs of a block and two single ones: four beside two leave no pair, though there are six."""
    layout = Layout((slot, "") for slot in range(8))
    for free, degree in itertools.product(range(256), (1, 2, 4, 8)):
        blocks = {size: sum(b & free == b for b in found) for size, found in layout.blocks.items()}
        for number in range(4):
            for taken in itertools.combinations_with_replacement((1, 2, 4), number):
                if placed(layout, free, taken):
                    room = sum(taken) + degree <= blocks[1]
                    begins = room and beam._fits(degree, taken, (), blocks)
                    assert begins == placed(layout, free, (*taken, degree)), (free, taken, degree)


def test_no_schedule_is_looked_for_when_the_time_is_up(monkeypatch):
    """With twelve waiting for eight GPUs a single moment has tens of thousands that can follow it."""
    degrees = {1: 0.1, 2: 0.06, 4: 0.035, 8: 0.02}
    profile = Profile([StepTime("step", SIDE, SIDE, k, 1, step) for k, step in degrees.items()])
    due = [10.0 + n for n in range(12)]
    board = Board(moment(profile, [20] * 12, due, [0.0] * 8))
    looked_at, clock = [], itertools.count()
    begin = beam._Courses._begin
    monkeypatch.setattr(beam._Courses, "_begin", lambda *args: looked_at.append(1) or begin(*args))
    monkeypatch.setattr(beam.time, "perf_counter", lambda: next(clock))
    assert beam.schedule(board, board.works, prices(board, board.works), until=10).tasks is None
    assert 0 < len(looked_at) <= 10


def test_the_beam_has_what_a_decision_has_left_of_its_time(monkeypatch):
    given = []

    def schedule(*_args, until: float) -> beam.Found:
        given.append(until)
        return beam.Found(None, 0)

    monkeypatch.setattr("scheduler.policies.exact.schedule", schedule)
    began = time.perf_counter()
    resolve("cp-sat")(problem(18, 6, 8), 100.0)
    assert given
    assert all(began < until <= time.perf_counter() + 100 for until in given)
