"""Whole steps on the clock: a schedule that has some requests all on time, where a line-up finds none.

A line-up gives each request one path through the GPUs, in two or three degrees. Where time is scarce, there
may be none but schedules in which requests change places many times. Such a one is looked for from moment to
moment: whenever GPUs are free, whoever waits may begin some steps at any degree, or wait for more GPUs. Of
all that have come about as far only few are followed up, those that are worth the most at the prices of the
fluid (`prices.py`): what is left of the GPUs' time, less the steps that are still to be done.
"""

import heapq
import math
import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from scheduler.policies.board import Board, Work
from scheduler.policies.lineup import Task
from scheduler.policies.mix import TOLERANCE
from scheduler.policies.prices import Price, Prices
from scheduler.problem import Stage

PASSES = ((1, 0.25), (1, 0.15), (2, 0.25), (2, 0.15))
"""How many are followed up, and about how many seconds of steps begin at once: the quickest first."""
WINDOW_S = 0.02
"""Those whose next moments lie within the same window of time have come about as far."""
MOST_WAITING = 5
"""So many of those who wait may begin, the earliest deadlines first: twelve would have 70,000 ways."""
EFFORT = 6000
"""Ways to go on to look at for a decision, 5 to 10 us of CPU each."""


class Part(NamedTuple):
    """What a work does: until `end` on so many GPUs; `paid` is what the meter of that shows then."""

    end: float
    degree: int
    paid: float


class Moment(NamedTuple):
    """A schedule up to the next time that something can begin.

    Of each work `left` steps that have not begun, one more where it is still to be encoded, and -1 from its
    decoding on; `parts` what it does. `begun` are work, degree and steps that began at the moment `before`.
    """

    at: float
    left: tuple[int, ...]
    parts: tuple[Part | None, ...]
    begun: tuple[tuple[int, int, int], ...] = ()
    before: "Moment | None" = None


class Found(NamedTuple):
    """Steps at one degree each, in the order in which they begin; None: no schedule was found."""

    tasks: list[Task] | None
    effort: int


def schedule(
    board: Board, works: Sequence[Work], prices: Prices, effort: int = EFFORT, until: float = math.inf
) -> Found:
    """How all of `works`, which have steps left, can be on time without sharing any.

    Effort and not time, so that the same problem always gets the same plan; unless that takes until after
    `until`, by `time.perf_counter`.
    """
    left = effort
    for width, piece_s in PASSES:
        found = _pass(_Courses(board, works, prices, piece_s, until), width, left)
        left -= found.effort
        if found.tasks is not None or left <= 0:
            return Found(found.tasks, effort - left)
    return Found(None, effort - left)


def joined(tasks: Sequence[Task]) -> list[Task]:
    """The same with one task for what a work does at one degree until that changes, where it begins."""
    found: list[Task] = []
    latest: dict[tuple[Work, ...], int] = {}
    for task in tasks:
        index = latest.get(task.works)
        if index is not None and found[index].degree == task.degree:
            found[index] = task._replace(steps=found[index].steps + task.steps)
        else:
            latest[task.works] = len(found)
            found.append(task)
    return found


def _pass(courses: "_Courses", width: int, effort: int) -> Found:
    first, spent = courses.first(), 0
    windows: dict[int, list[tuple[float, Moment]]] = defaultdict(list, {0: [(0.0, first)]})
    order = [0]
    while order:
        window = heapq.heappop(order)
        following = _best(windows.pop(window), width)
        for moment in following:
            for entry in courses.after(moment):
                spent += 1
                if spent > effort:
                    return Found(None, effort)
                if entry is None:
                    continue
                worth, after = entry
                if max(after.left) <= 0:
                    return Found(courses.tasks(after), spent)
                to = int((after.at - first.at) / WINDOW_S)
                if to == window:
                    following.append(after)
                    continue
                if to not in windows:
                    heapq.heappush(order, to)
                windows[to].append((worth, after))
    return Found(None, spent)


def _best(found: list[tuple[float, Moment]], width: int) -> list[Moment]:
    """Those worth the most that differ in more than in when parts end."""
    best, known = [], set()
    for _, moment in sorted(found, key=lambda entry: -entry[0]):
        key = (moment.left, tuple([part and part.degree for part in moment.parts]))
        if key not in known:
            known.add(key)
            best.append(moment)
            if len(best) == width:
                break
    return best


class _Item(NamedTuple):
    """What is asked about a work at every moment; times in seconds."""

    steps: int
    ready: float
    encode: float
    decode: float
    due: float
    step: dict[int, float]
    fastest: float
    most: dict[int, int]
    """So many steps at a degree begin at once at most."""
    price: Price
    encoding_worth: float
    decoding_worth: float


class _Courses:
    """How schedules of `works` can go on."""

    def __init__(
        self, board: Board, works: Sequence[Work], prices: Prices, piece_s: float, until: float
    ) -> None:
        self._works, self._worth, self._until = works, prices.worth, until
        self._now = board.problem.now
        blocks = board.block_ends(Stage.DENOISING)
        self._opens = sorted({at for ends in blocks.values() for at in ends if at < math.inf})
        self._open = [
            {size: sum(at <= moment for at in ends) for size, ends in blocks.items()}
            for moment in self._opens
        ]
        """From each of those moments on, how many blocks orders under way have left, by size."""
        self._items = [
            _Item(
                work.steps,
                max(work.ready, self._now),
                work.encode,
                work.decode,
                work.hard_due + TOLERANCE,
                work.ladder.step,
                work.ladder.fastest,
                {degree: max(1, round(piece_s / step)) for degree, step in work.ladder.step.items()},
                price,
                price.stage * work.encode,
                price.stage * work.decode,
            )
            for work, price in zip(works, prices.works, strict=True)
        ]
        self._wakes = sorted({*self._opens, *(item.ready for item in self._items)})

    def first(self) -> Moment:
        """Nothing has begun."""
        left = tuple(work.steps + (work.stage is Stage.ENCODING) for work in self._works)
        return Moment(max(self._now, self._wakes[0]), left, (None,) * len(left))

    def after(self, moment: Moment) -> Iterator[tuple[float, Moment] | None]:
        """What may begin, as it looks at the moment after that, and what that is worth; None: nothing.

        No more comes when the time is up.
        """
        at, left, parts = moment.at, list(moment.left), list(moment.parts)
        taken, waiting = [], []
        for z, part in enumerate(parts):
            if part is not None and part.end <= at + TOLERANCE:
                part = None
                if left[z] == 0:
                    part, left[z] = self._decoding(z, at), -1
                parts[z] = part
            if part is not None:
                taken.append(part.degree)
            elif left[z] > 0 and self._items[z].ready <= at + TOLERANCE:
                waiting.append(z)
        for begun in self._choices(waiting, left, taken, at):
            if time.perf_counter() >= self._until:
                return
            yield self._begin(moment, left, parts, begun)

    def tasks(self, last: Moment) -> list[Task]:
        """The steps of a schedule."""
        moments = [last]
        while moments[-1].before is not None:
            moments.append(moments[-1].before)
        begun = [entry for moment in reversed(moments) for entry in moment.begun]
        return [Task((self._works[z],), degree, count) for z, degree, count in begun if count]

    def _decoding(self, z: int, begin: float) -> Part | None:
        item = self._items[z]
        end = begin + item.decode
        return Part(end, 1, item.price.stage_paid.at(end)) if item.decode else None

    def _choices(
        self, waiting: Sequence[int], left: Sequence[int], taken: Sequence[int], at: float
    ) -> Iterator[tuple[tuple[int, int, int], ...]]:
        """Who may begin how many steps at which degrees at the same time."""
        index = bisect_right(self._opens, at + TOLERANCE) - 1
        if index < 0:
            return iter([()])
        free = self._open[index]
        room = free.get(1, 0) - sum(taken)
        found: list[tuple[tuple[tuple[int, int, int], ...], int]] = [((), 0)]
        for z in waiting[:MOST_WAITING]:
            if left[z] > self._items[z].steps:
                options = [(1, 0)]
            else:
                options = [(k, min(left[z], most)) for k, most in self._items[z].most.items()]
            found += [
                ((*begun, (z, k, count)), used + k)
                for begun, used in found
                for k, count in options
                if used + k <= room and _fits(k, taken, begun, free)
            ]
        return (begun for begun, _ in found)

    def _begin(
        self,
        moment: Moment,
        left: Sequence[int],
        parts: Sequence[Part | None],
        begun: tuple[tuple[int, int, int], ...],
    ) -> tuple[float, Moment] | None:
        """The moment after this has begun; None where somebody will be late."""
        at, items = moment.at, self._items
        if begun:
            left, parts = list(left), list(parts)
            for z, degree, count in begun:
                item = items[z]
                if count:
                    end, meter = at + count * item.step[degree], item.price.paid[degree]
                    if left[z] == count and end > item.due:
                        return None
                else:
                    end, meter = at + item.encode, item.price.stage_paid
                parts[z] = Part(end, degree, meter.at(end))
                left[z] -= count or 1
        then = min([part.end for part in parts if part is not None], default=math.inf)
        wake = bisect_right(self._wakes, at + TOLERANCE)
        if wake < len(self._wakes):
            then = min(then, self._wakes[wake])
        if then == math.inf:
            return None  # no GPU for who is left
        worth = -self._worth.at(then)
        for item, part, steps in zip(items, parts, left, strict=True):
            apart = steps < 0 or steps == item.steps
            if steps >= 0:
                worth -= item.decoding_worth
            if steps > 0:
                soonest = part.end if part is not None and part.end > then else max(then, item.ready)
                if steps > item.steps:
                    steps -= 1
                    soonest += item.encode
                    worth -= item.encoding_worth
                if soonest + steps * item.fastest > item.due:
                    return None
                worth -= item.price.step * steps
            if part is not None and part.end > then:
                meter = item.price.stage_paid if apart else item.price.paid[part.degree]
                worth -= part.paid - meter.at(then)
        return worth, Moment(then, tuple(left), tuple(parts), begun, moment)


def _fits(
    degree: int, taken: Sequence[int], begun: Sequence[tuple[int, int, int]], free: Mapping[int, int]
) -> bool:
    """Whether there are blocks for one more of this degree, besides single GPUs.

    Of every size up to it: its own is not enough where those in use are narrower.
    """
    size = degree
    while size > 1:
        wide = sum([k // size for k in taken if k >= size])
        wide += sum([k // size for _, k, _ in begun if k >= size])
        if wide + degree // size > free.get(size, 0):
            return False
        size //= 2
    return True
