"""The beam's schedules in whole steps, and the prices that guide it."""

import itertools

from scheduler.placement import Layout
from scheduler.policies import beam
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
