"""The round as a 0/1 program: who is admitted to be on time, and at which degree each goes on now.

A column is a choice: a request runs its next order at some degree, or waits this round (degree 0). A
request without a choice is given up. What comes after the round is bounded by energy: until any
deadline, the GPU-seconds that the chosen must have used by then fit into what the GPUs have left. That
is a relaxation, so that the best value is a bound on what any plan reaches. All numbers are integers
(milliseconds, thousandths of weight), for both solvers to see the same program.
"""

import math
from dataclasses import dataclass

from scheduler.policies.board import Board, Work
from scheduler.policies.mix import TOLERANCE
from scheduler.problem import Stage

MAX_DEADLINES = 12
"""Energy is counted at this many deadlines at most."""
MS = 1000
WEIGHT_UNIT = 1000


@dataclass(frozen=True, slots=True)
class Choice:
    """A column: `work` goes on at `degree` now, or waits (0). `gain` is its part of the objective."""

    work: Work
    degree: int
    gain: int


@dataclass(frozen=True, slots=True)
class Row:
    """The sum of coefficient x column over `terms` is at most `limit`."""

    terms: tuple[tuple[int, int], ...]
    limit: int


@dataclass(frozen=True, slots=True)
class Program:
    """Maximise the gain of the chosen columns under all rows.

    `scale` is the gain of one unit of weight: gains are weights first, GPU-milliseconds second.
    """

    choices: tuple[Choice, ...]
    rows: tuple[Row, ...]
    scale: int

    def weight(self, objective: float) -> float:
        """The weight on time that an objective value, or a bound on it, stands for."""
        return math.ceil(objective / self.scale - TOLERANCE) / WEIGHT_UNIT


@dataclass(frozen=True, slots=True)
class Solution:
    """Chosen columns, if any were found; `bound` is on the objective."""

    chosen: frozenset[int] | None
    bound: float
    status: str


@dataclass(frozen=True, slots=True)
class _Option:
    work: Work
    degree: int
    end: float  # of the order, or when a request that waits could go on
    steps: int  # left after it
    rest: float  # GPU-seconds of those, at least

    def cost(self) -> float:
        """GPU-seconds from now on."""
        work = self.work
        now = self.degree * work.ladder.step[self.degree] * (work.steps - self.steps) if self.degree else 0.0
        return now + self.rest


def build(board: Board) -> Program:
    """The program of a round."""
    options = [option for work in board.works for option in _options(board, work)]
    # Weights come first: one more thousandth outweighs all GPU-milliseconds together.
    scale = 1 + sum(math.ceil(MS * option.cost()) for option in options)
    choices = tuple(
        Choice(
            option.work,
            option.degree,
            scale * round(WEIGHT_UNIT * option.work.request.weight) - round(MS * option.cost()),
        )
        for option in options
    )
    rows = [*_one_choice_each(options), *_blocks(board, options), *_energy(board, options)]
    return Program(choices, tuple(rows), scale)


def _options(board: Board, work: Work) -> list[_Option]:
    """What a request can do in this round and still be on time."""
    if work.late or not work.has_deadline:
        return []
    problem = board.problem
    begin, ends = max(work.ready, problem.now), problem.now + problem.round_s
    encode = work.encode if work.stage is Stage.ENCODING else 0.0
    # Who waits may go on at once: the next event can come before the round is over, and an order can be
    # shorter than the round. Anything later would not be a relaxation.
    forms = [(0, begin + encode, work.steps)]
    if board.startable(work) and board.free:
        if work.stage is not Stage.DENOISING:
            # On one GPU and short: taken as free of charge, so that the model stays a relaxation.
            forms = [(0, begin + encode, work.steps)]
        else:
            for degree in work.ladder.degrees:
                step = work.ladder.step[degree]
                steps = min(work.steps, max(1, math.ceil((ends - begin) / step - TOLERANCE)))
                forms.append((degree, begin + steps * step, work.steps - steps))
    found = []
    for degree, end, steps in forms:
        mix = work.ladder.cheapest(steps, work.hard_due - end)
        if mix is not None:
            found.append(_Option(work, degree, end, steps, mix.gpu_seconds))
    return found


def _one_choice_each(options: list[_Option]) -> list[Row]:
    columns: dict[str, list[int]] = {}
    for index, option in enumerate(options):
        columns.setdefault(option.work.request.id, []).append(index)
    return [Row(tuple((index, 1) for index in own), 1) for own in columns.values() if len(own) > 1]


def _blocks(board: Board, options: list[_Option]) -> list[Row]:
    """Aligned blocks nest, so degrees fit just when those of at least k fill the free blocks of k."""
    rows = []
    for size in board.layout.blocks:
        free = sum(block & board.free == block for block in board.blocks(Stage.DENOISING, size))
        terms = tuple((i, o.degree // size) for i, o in enumerate(options) if o.degree >= size)
        if sum(factor for _, factor in terms) > free:
            rows.append(Row(terms, free))
    return rows


def _energy(board: Board, options: list[_Option]) -> list[Row]:
    """Until each deadline, what must have been used by then fits into what the GPUs have left."""
    ends = board.problem.now + board.problem.round_s
    dues = sorted({option.work.hard_due for option in options})
    if len(dues) > MAX_DEADLINES:
        step = len(dues) / MAX_DEADLINES
        dues = [dues[int((n + 1) * step) - 1] for n in range(MAX_DEADLINES)]
    rows = []
    for due in dues:
        room = sum(
            max(0.0, due - max(ends, board.ends[single])) for single in board.blocks(Stage.DENOISING, 1)
        )
        terms = tuple(
            (index, used)
            for index, option in enumerate(options)
            if (used := int(MS * _used_by(option, due, ends))) > 0
        )
        limit = math.ceil(MS * room)
        if sum(used for _, used in terms) > limit:
            rows.append(Row(terms, limit))
    return rows


def _used_by(option: _Option, due: float, ends: float) -> float:
    """GPU-seconds between the end of the round and `due` that the option needs at least."""
    work = option.work
    over = option.degree * max(0.0, min(option.end, due) - ends)
    # What begins before the round is over may use GPUs that this row does not count.
    over -= work.ladder.widest * max(0.0, ends - option.end)
    if work.hard_due <= due + TOLERANCE:
        return over + option.rest
    # What is not due yet can wait for as long as the fastest degree makes up for it; a step may straddle.
    later = (work.hard_due - max(due, option.end)) / work.ladder.fastest
    return over + max(0.0, option.steps - later) * work.ladder.least_cost
