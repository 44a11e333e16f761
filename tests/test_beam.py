"""The beam's schedules in whole steps, and the prices that guide it."""

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
