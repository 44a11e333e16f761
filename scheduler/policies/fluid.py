"""The outstanding work as a fluid: who can be on time together, and on how many GPUs each runs when.

Time from now on is cut into spans at deadlines and where GPUs become free. In each span a request may spend
some milliseconds at each degree. What makes this more than a count of GPU-seconds are the rows for blocks:
degrees are powers of two, so whoever runs at all takes at least one of the blocks of k GPUs that requests of
degree k and wider share. On average over a span, 7 + 1 GPUs would do for a request that needs all 8 and a
small one beside it; on the clock, one of them has to wait.

Encodings and decodings take time on one GPU each, wherever steps could have had it. That steps cannot be
interrupted, places, and what comes before what are left out, so the best value is a bound on what any plan
can have on time, but for what whole milliseconds round away. Of the solutions with as much on time one is
wanted that can be run in spite of them: one that leaves some share of every span idle, as large as can be.
All numbers are integers, for both solvers to see the same program.
"""

import bisect
import math
from collections.abc import Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from scheduler.policies.board import Board, Work
from scheduler.policies.lineup import Task
from scheduler.policies.mix import TOLERANCE
from scheduler.policies.sharing import Lanes
from scheduler.problem import Stage

MS = 1000
WEIGHT_UNIT = 1000
NOISE = 1e-6
"""Of weights, in units: they are sums of many floats."""
STEP_UNIT = 1_000_000
SHARE_UNIT = 1000
PERCENT = 100
IDLE_WORTH = 3
"""What all time idle would be worth, in terms of all time used."""
MAX_DEADLINES = 10
"""Spans are cut at this many deadlines at most."""
GRAIN_S = 0.1
"""Orders in flight end within moments of each other: spans are cut at multiples of this, rounded down."""


def units(weight: float) -> int:
    """A request's weight as a whole number, rounded up, so that bounds stay bounds."""
    return math.ceil(WEIGHT_UNIT * weight - NOISE)


class Use(NamedTuple):
    """A column: how long `work` runs at `degree` in a span."""

    work: Work
    degree: int
    span: int


@dataclass(frozen=True, slots=True)
class Row:
    """The sum of coefficient x column over `terms` is at most `limit`."""

    terms: tuple[tuple[int, int], ...]
    limit: int


@dataclass(frozen=True, slots=True)
class Program:
    """Maximise the gain of all columns under all rows.

    The first columns say of each of `works` whether it is on time; the others are milliseconds, those of
    `uses` for steps, of `stages` for encodings and decodings, or sums of them, but for one, the percentage of
    every span that may be used. Each column is an integer from 0 to its upper end. `scale` is the gain of one
    unit of weight: gains are weights first, what is left idle and GPU-milliseconds second. `spans` are what
    the columns of time count by, where there are any.
    """

    works: tuple[Work, ...]
    spans: tuple[tuple[float, float], ...]
    uses: tuple[tuple[int, Use], ...]
    stages: tuple[tuple[int, Use], ...]
    uppers: tuple[int, ...]
    gains: tuple[int, ...]
    rows: tuple[Row, ...]
    scale: int

    @property
    def most(self) -> float:
        """What no objective value exceeds, whatever the rows say."""
        return float(sum(gain for gain in self.gains if gain > 0))

    def weight(self, objective: float) -> float:
        """The weight on time that an objective value, or a bound on it, stands for."""
        return math.ceil(objective / self.scale - TOLERANCE) / WEIGHT_UNIT

    def more_than(self, weight: float) -> Row:
        """More than this weight is on time."""
        terms = tuple((z, -units(work.request.weight)) for z, work in enumerate(self.works))
        return Row(terms, -math.floor(WEIGHT_UNIT * weight + NOISE) - 1)

    def chosen(self, values: Sequence[float]) -> list[Work]:
        """Whom these values have on time."""
        return [work for work, z in zip(self.works, values, strict=False) if z > 0.5]

    def not_all(self, values: Sequence[float]) -> Row:
        """Not all are on time whom these values have on time."""
        terms = tuple((z, 1) for z in range(len(self.works)) if values[z] > 0.5)
        return Row(terms, len(terms) - 1)


@dataclass(frozen=True, slots=True)
class Solution:
    """Values of all columns, if any were found; `bound` is on the objective.

    `effort` is the share of a decision's effort that it took, 0 where a solver has no measure but time.
    """

    values: tuple[float, ...] | None
    bound: float
    status: str
    effort: float = 0.0


def build(
    board: Board, works: Sequence[Work], batches: bool = False, idle: bool = True, grain_s: float = GRAIN_S
) -> Program:
    """The program of the work that has denoising steps left.

    Its best value is a bound on plans without batches; `batches`: on those with batches worth it, too, and
    only that. Without `idle` nothing is wanted but who is on time.
    """
    # Data: when each can begin and must end; when blocks are free, by size; spans.
    works = tuple(work for work in works if work.steps)
    now = board.problem.now
    ready = [_floor(now, work.ready + work.encode, grain_s) for work in works]
    due = _on_few_cuts([work.hard_due for work in works])
    ended = [work.hard_due + work.decode for work in works]
    apart_s = [_apart_s(board, work) for work in works]
    free_at = _free_at(board, grain_s)
    begins = (*ready, *(at for times in free_at.values() for at in times))
    last = max((*due, *ended), default=now)
    cuts = sorted({now, *due, *(at for at in begins if at < last), last})
    spans = [(begin, end) for begin, end in pairwise(cuts) if end > begin + TOLERANCE]
    lengths = [math.ceil(MS * (end - begin)) for begin, end in spans]
    free = [
        {size: sum(at <= begin + TOLERANCE for at in times) for size, times in free_at.items()}
        for begin, _ in spans
    ]

    # Columns: on time or not; milliseconds by work, degree and span, and those of encodings and decodings.
    columns = _Columns([1] * len(works))
    own = [
        [
            (columns.add(lengths[s]), Use(work, degree, s))
            for s, (begin, end) in enumerate(spans)
            if ready[z] <= begin + TOLERANCE and end <= due[z] + TOLERANCE
            for degree in work.ladder.degrees
            if free[s].get(degree)
        ]
        for z, work in enumerate(works)
    ]
    stages = [
        [
            (columns.add(lengths[s]), Use(work, 1, s))
            for s, (begin, end) in enumerate(spans)
            if apart_s[z] and work.ready <= end - TOLERANCE and begin + TOLERANCE <= ended[z]
            if free[s].get(1)
        ]
        for z, work in enumerate(works)
    ]
    full = columns.add(PERCENT) if idle and not batches else None

    # Rows.
    rows = [_all_steps(z, work, own[z]) for z, work in enumerate(works)]
    rows += [
        Row((*((c, -1) for c, _ in lane), (z, math.floor(MS * apart_s[z]))), 0)
        for z, lane in enumerate(stages)
        if lane
    ]
    classes = sharing(works) if batches else []
    for s, length in enumerate(lengths):
        steps = {z: [(c, u.degree) for c, u in lane if u.span == s] for z, lane in enumerate(own)}
        apart = {z: [(c, 1) for c, u in lane if u.span == s] for z, lane in enumerate(stages)}
        here = {z: found for z in steps if (found := steps[z] + apart[z])}
        rows += [Row((*((c, 1) for c, _ in lane), (z, -length)), 0) for z, lane in here.items()]
        if full is not None:
            rows += [_at_most(length, [(c, 1) for c, _ in lane], full) for lane in here.values()]
        taken = [entry for lane in here.values() for entry in lane]
        for shared_steps, members in classes:
            for degree, times in shared_steps.items():
                own_time = [c for z in members for c, k in steps[z] if k == degree]
                if len(own_time) > 1:
                    shared, more = _share(columns, own_time, times, length * free[s][degree])
                    taken = [(c, k) for c, k in taken if c not in own_time] + [(shared, degree)]
                    rows += more
        for size, blocks in free[s].items():
            limit, exact = blocks * length, blocks * size == free[s][1]
            rows += _blocks(columns, taken, list(here.values()), size, limit, exact, full)

    # Objective: the most weight on time, then, where it is not only a bound, much idle and few GPU-seconds.
    most = len(board.layout.slots) * sum(lengths)
    scale = 1 + (1 + IDLE_WORTH) * most
    gains = [scale * units(work.request.weight) for work in works]
    gains += [0] * (len(columns.uppers) - len(gains))
    uses = tuple(entry for lane in own for entry in lane)
    if full is not None:
        gains[full] = -(IDLE_WORTH * most // PERCENT)
        for column, use in uses:
            gains[column] = -use.degree
    others = tuple(entry for lane in stages for entry in lane)
    return Program(works, tuple(spans), uses, others, tuple(columns.uppers), tuple(gains), tuple(rows), scale)


def _apart_s(board: Board, work: Work) -> float:
    """Seconds of what a work has to do besides its steps, on GPUs that steps could have had."""
    steps = board.able[Stage.DENOISING]
    encode = work.encode if not board.able[Stage.ENCODING] & ~steps else 0.0
    return encode + (work.decode if not board.able[Stage.DECODING] & ~steps else 0.0)


class _Columns:
    """Columns as they are added, by their upper ends."""

    def __init__(self, uppers: list[int]) -> None:
        self.uppers = uppers

    def add(self, upper: int) -> int:
        """The index of one more column."""
        self.uppers.append(upper)
        return len(self.uppers) - 1


def _all_steps(z: int, work: Work, lane: Sequence[tuple[int, Use]]) -> Row:
    """Who is on time has done all steps."""
    done = {degree: math.ceil(STEP_UNIT / (MS * step)) for degree, step in work.ladder.step.items()}
    return Row((*((column, -done[use.degree]) for column, use in lane), (z, STEP_UNIT * work.steps)), 0)


def sharing(works: Sequence[Work]) -> list[tuple[Lanes, list[int]]]:
    """Who can share steps with whom, by index, with the step times of their batches."""
    found: dict[Hashable, list[int]] = {}
    for z, work in enumerate(works):
        if work.steps and work.lanes:
            found.setdefault(work.request.batch_key, []).append(z)
    return [(works[members[0]].lanes, members) for members in found.values() if len(members) > 1]


def _share(
    columns: _Columns, own_time: Collection[int], times: Sequence[float], limit: int
) -> tuple[int, list[Row]]:
    """In one span, at one degree: the column of the time that blocks are taken, where steps can be shared.

    A step of b takes at least 1 + (b - 1) * growth times as long as a step alone. So blocks are taken for the
    share `growth` of all steps as if each were alone, and for the rest of them once a batch; and nobody has
    more steps than there are batches. That a step of several takes each of them longer is left out.
    """
    most = min(len(own_time), len(times))
    growth = min((times[b] / times[0] - 1) / b for b in range(1, len(times)))
    once, taken = columns.add(limit), columns.add(limit)
    rows = [Row(((column, 1), (once, -1)), 0) for column in own_time]
    rows.append(Row((*((column, 1) for column in own_time), (once, -most)), 0))
    each = int(growth * SHARE_UNIT)
    terms = (*((column, each) for column in own_time), (once, SHARE_UNIT - each - 1), (taken, -SHARE_UNIT))
    rows.append(Row(terms, SHARE_UNIT))  # one millisecond for rounding
    return taken, rows


def _blocks(
    columns: _Columns,
    taken: Sequence[tuple[int, int]],
    own_time: Sequence[Sequence[tuple[int, int]]],
    size: int,
    limit: int,
    exact: bool,
    full: int | None,
) -> list[Row]:
    """In one span: those of this degree and wider share its blocks, and nobody narrower runs for nothing.

    Columns with degrees, of the time that blocks are taken and of each work's own time; `exact`: there are no
    free GPUs beside these blocks.
    """
    wide = tuple((c, degree // size) for c, degree in taken if degree >= size)
    narrow = [tuple((c, 1) for c, degree in lane if degree < size) for lane in own_time]
    narrow = [lane for lane in narrow if lane]
    if not wide or not exact or not narrow:
        return [_at_most(limit, wide, full)] if wide else []
    if len(narrow) == 1:
        return [_at_most(limit, (*wide, *narrow[0]), full)]
    together = columns.add(limit)
    return [
        Row((*wide, (together, -1)), 0),
        *(_at_most(limit, ((together, 1), *lane), full) for lane in narrow),
    ]


def _at_most(limit: int, terms: Sequence[tuple[int, int]], full: int | None) -> Row:
    """No more time is taken than there is, or than its percentage in the column `full`."""
    if full is None:
        return Row(tuple(terms), limit)
    return Row((*terms, (full, -(limit // PERCENT))), limit % PERCENT)


def _free_at(board: Board, grain_s: float) -> dict[int, list[float]]:
    """When each block that can run steps is free, by size."""
    now = board.problem.now
    return {
        size: [_floor(now, at, grain_s) for at in ends]
        for size, ends in board.block_ends(Stage.DENOISING).items()
    }


def _on_few_cuts(due: Sequence[float]) -> list[float]:
    """The deadlines, some put off to the next one, so that there are no more than MAX_DEADLINES."""
    distinct = sorted(set(due))
    if len(distinct) > MAX_DEADLINES:
        every = len(distinct) / MAX_DEADLINES
        distinct = [distinct[math.ceil((n + 1) * every) - 1] for n in range(MAX_DEADLINES)]
    return [distinct[bisect.bisect_left(distinct, at)] for at in due]


def tasks(program: Program, values: Sequence[float]) -> Iterator[list[Task]]:
    """A solution in whole steps, in orders in which to run them: by span, the widest first or last."""
    by_work: dict[str, list[tuple[Use, float]]] = {}
    for column, use in program.uses:
        if values[column] > 0.5:
            by_work.setdefault(use.work.request.id, []).append((use, values[column]))
    found: list[tuple[int, int, float, Task]] = []
    for z, work in enumerate(program.works):
        uses = sorted(by_work.get(work.request.id, []), key=lambda u: (u[0].span, -u[0].degree))
        if values[z] < 0.5 or not uses:
            continue
        total, given = 0.0, 0
        for index, (use, milliseconds) in enumerate(uses):
            total += milliseconds / MS / work.ladder.step[use.degree]
            upto = work.steps if index == len(uses) - 1 else min(work.steps, round(total))
            if upto > given:
                found.append((use.span, use.degree, work.due, Task((work,), use.degree, upto - given)))
                given = upto
    for sign in (-1, 1):
        yield [task for *_, task in sorted(found, key=lambda e: (e[0], sign * e[1], e[2]))]


def _floor(now: float, at: float, grain_s: float) -> float:
    """A moment soon after now, on the grid."""
    return now + max(0.0, math.floor((at - now) / grain_s + TOLERANCE) * grain_s)
