"""Whom to serve where time is not enough for all, by GPU-seconds alone: a knapsack with deadlines.

Whoever is due by some moment has taken the GPU-seconds of all of its steps by then, and all of these together
no more than there are until then. Degrees, places and the rest are left to the line-up. Where each request
has much more time than its steps take, that is all that matters, and there are far more choices than a search
could place.
"""

import heapq
import math
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from scheduler.policies.board import Board, Work
from scheduler.policies.fluid import MS, Program, Row, sharing, units
from scheduler.policies.lineup import Lineup, Ranking, line_up, on_time
from scheduler.policies.mix import TOLERANCE
from scheduler.problem import Stage

ROOM = (1.0, 0.95, 0.9, 0.85)
"""Shares of the GPU-seconds to fill, until all who are chosen find a place."""
CORE = 0.85
"""Share of that whose fill comes first of all: if arrivals cost somebody the place, then the least worth."""


@dataclass(frozen=True, slots=True)
class Loads:
    """`works` with steps left, earliest deadline first, with two columns in GPU-seconds.

    `needs` is the least that the steps of each take, `rooms` what there is for steps until it has to be done.
    """

    works: tuple[Work, ...]
    needs: tuple[float, ...]
    rooms: tuple[float, ...]

    def scaled(self, share: float) -> "Loads":
        """The same with a share of the room."""
        return replace(self, rooms=tuple(share * room for room in self.rooms))


def loads_of(board: Board, works: Iterable[Work]) -> Loads:
    """Of the work that has steps left."""
    works = tuple(sorted((work for work in works if work.steps), key=lambda work: work.hard_due))
    able = board.able[Stage.DENOISING]
    free_at = [board.free_at[slot] for slot in board.layout.slots if able >> slot & 1]
    rooms = tuple(sum(max(0.0, work.hard_due - at) for at in free_at) for work in works)
    return Loads(works, tuple(_needs(works)), rooms)


def _needs(works: Sequence[Work]) -> list[float]:
    least = [
        work.ladder.least_gpu_seconds(work.steps, work.hard_due - work.ready - work.encode) for work in works
    ]
    for lanes, members in sharing(works):
        each = min(k * t / b for k, times in lanes.items() for b, t in enumerate(times[: len(members)], 1))
        each = min(each, works[members[0]].ladder.least_cost)  # some steps shared, others not
        for z in members:
            least[z] = min(least[z], works[z].steps * each)
    return least


def densest(loads: Loads) -> list[Work]:
    """A good choice of those that fit together.

    Whenever a deadline is reached with more work than room, those of the least weight for their GPU-seconds
    go; who still fits in the end comes back.
    """
    works, needs, rooms = loads.works, loads.needs, loads.rooms

    def value(z: int) -> float:
        return works[z].request.weight / max(needs[z], 1e-9)

    heap: list[tuple[float, int]] = []
    out: list[int] = []
    load = 0.0
    for z, room in enumerate(rooms):
        heapq.heappush(heap, (value(z), z))
        load += needs[z]
        while load > room:
            _, least = heapq.heappop(heap)
            load -= needs[least]
            out.append(least)
    chosen = {z for _, z in heap}
    taken = accumulate(needs[z] if z in chosen else 0.0 for z in range(len(works)))
    spare = [room - load for room, load in zip(rooms, taken, strict=True)]
    for z in sorted(out, key=value, reverse=True):
        if needs[z] <= min(spare[z:]):
            chosen.add(z)
            spare[z:] = [left - needs[z] for left in spare[z:]]
    return [work for z, work in enumerate(works) if z in chosen]


def start(first: Lineup, until: float = math.inf) -> Lineup:
    """The line-up, or a better one in which those come first who are worth the most for their GPU-seconds.

    None is looked for after `until`, by `time.perf_counter`.
    """
    board, order = first.board, first.ranking.order
    best, loads = first, loads_of(board, order)
    known = set()
    for share in ROOM:
        if time.perf_counter() >= until:
            break
        chosen, core = (ids_of(densest(loads.scaled(part))) for part in (share, CORE * share))
        if (chosen, core) not in known:
            known.add((chosen, core))
            candidate = serving(board, order, core, chosen)
            if on_time(candidate) > on_time(best) + TOLERANCE:
                best = candidate
            if chosen <= candidate.finish.keys():
                break
    return best


def ids_of(works: Iterable[Work]) -> frozenset[str]:
    """Of their requests."""
    return frozenset(work.request.id for work in works)


def serving(board: Board, order: Iterable[Work], *chosen: Collection[str]) -> Lineup:
    """The line-up of work in its order, but one set of ids after the other first, behind decodings."""

    def place(work: Work) -> int:
        if not work.steps:
            return -1
        return next((at for at, ids in enumerate(chosen) if work.request.id in ids), len(chosen))

    return line_up(board, Ranking(tuple(sorted(order, key=place))))


def build(loads: Loads) -> Program:
    """The choice as a program; its best value bounds what any plan can have on time."""
    works = loads.works
    costs = [math.floor(MS * need) for need in loads.needs]
    totals = accumulate(costs)
    rows = [
        Row(tuple(enumerate(costs[: z + 1])), limit)
        for z, (load, room) in enumerate(zip(totals, loads.rooms, strict=True))
        if load > (limit := math.ceil(MS * room))
    ]
    scale = 1 + sum(costs)
    gains = [scale * units(work.request.weight) - cost for work, cost in zip(works, costs, strict=True)]
    return Program(works, (), (), (), (1,) * len(works), tuple(gains), tuple(rows), scale)
