"""Which node a request is planned on. Groups stay within a node, so that nodes are planned apart.

A node's load is energetic: the GPU-seconds that its requests need there by each deadline against those that
its GPUs have until then. A new request goes where the most is left; it stays there with its state
unless its node has too little for it and another has enough.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from heapq import nsmallest

from scheduler.problem import Gpu, Request, Stage
from scheduler.profile import Profile

CANDIDATES = 8
"""A request chooses among this many nodes, those with the least to do."""


@lru_cache(maxsize=4096)
def _rungs(profile: Profile, width: int, height: int, widest: int) -> tuple[tuple[float, float], ...]:
    """GPU-seconds and seconds of a step at each degree worth using, narrowest first."""
    times = [(k, profile.step(width, height, k)) for k in profile.degrees(width, height) if k <= widest]
    return tuple((k * seconds, seconds) for k, seconds in times)


def wants(profile: Profile, request: Request, now: float, widest: int) -> tuple[float, float]:
    """By when a request is due, and the GPU-seconds left of it at the narrowest degree that is fast enough.

    What cannot be on time any more has no hurry: it is due at infinity, at its cheapest.
    """
    fixed = profile.decode(request.width, request.height)
    if request.stage is Stage.ENCODING:
        fixed += profile.encode()
    left = request.deadline - max(now, request.ready_at) - fixed
    if not request.steps:
        return (request.deadline if left >= 0 else math.inf), fixed
    rungs = _rungs(profile, request.width, request.height, widest)
    if left < math.inf:
        allowed = left / request.steps
        for cost, seconds in rungs:
            if seconds <= allowed:
                return request.deadline, fixed + request.steps * cost
    return math.inf, fixed + request.steps * rungs[0][0]


@dataclass(slots=True)
class Load:
    """What a node has to do. `dues` ascend; `needed` are the GPU-seconds up to each of them, and all."""

    profile: Profile
    """How long things take there."""
    free_at: tuple[float, ...]
    widest: int
    dues: list[float]
    needed: list[float]
    backlog: float
    """GPU-seconds ordered or outstanding, for each GPU, whatever the deadline."""

    @classmethod
    def of(cls, profile: Profile, gpus: Sequence[Gpu], requests: Iterable[Request], now: float) -> "Load":
        """The load of a node with these GPUs and requests."""
        widest = 1 << (len(gpus).bit_length() - 1)
        wanted = sorted([wants(profile, r, now, widest) for r in requests])
        needed, total = [], 0.0
        for _, need in wanted:
            total += need
            needed.append(total)
        free_at = tuple(gpu.free_at for gpu in gpus)
        busy = sum(max(0.0, at - now) for at in free_at)
        return cls(profile, free_at, widest, [due for due, _ in wanted], needed, (total + busy) / len(gpus))

    def wants(self, request: Request, now: float) -> tuple[float, float]:
        """By when a request is due if it runs here, and the GPU-seconds that it takes; see `wants`."""
        return wants(self.profile, request, now, self.widest)

    def with_it(self, need: float) -> float:
        """The backlog with so many GPU-seconds more."""
        return self.backlog + need / len(self.free_at)

    def room(self, due: float, now: float) -> float:
        """GPU-seconds that are left until `due` by those who have to be done by then."""
        have = sum([max(0.0, due - max(at, now)) for at in self.free_at])
        before = bisect_right(self.dues, due)
        return have - (self.needed[before - 1] if before else 0.0)

    def fits(self, now: float) -> bool:
        """Whether all that must be done by some deadline has the GPU-seconds for it."""
        return all(self.room(due, now) >= 0 for due in self.dues if due < math.inf)

    def add(self, due: float, need: float) -> None:
        """Take one more request."""
        at = bisect_right(self.dues, due)
        self.dues.insert(at, due)
        before = self.needed[at - 1] if at else 0.0
        self.needed[at:] = [before + need, *[total + need for total in self.needed[at:]]]
        self.backlog = self.with_it(need)


def choose(loads: Mapping[str, Load], request: Request, now: float, *, must_fit: bool = False) -> str | None:
    """The node with the most left for the request, which is added to its load.

    Among the `CANDIDATES` with the least to do. None where `must_fit` and no node has enough.
    """
    least = nsmallest(CANDIDATES, loads, key=lambda node: (loads[node].backlog, node))
    best, best_rank, best_want = None, (-math.inf, -math.inf), (0.0, 0.0)
    for node in least:
        load = loads[node]
        due, need = want = load.wants(request, now)
        left = load.room(due, now) - need if due < math.inf else -math.inf
        rank = (left, -load.with_it(need))
        if (best is None or rank > best_rank) and not (must_fit and left < 0):
            best, best_rank, best_want = node, rank, want
    if best is not None:
        loads[best].add(*best_want)
    return best


def best(loads: Mapping[str, Load], request: Request, now: float, count: int = 3) -> list[str]:
    """The few nodes with the most left for the request, the best first."""

    def rank(node: str) -> tuple[bool, float, str]:
        load = loads[node]
        due, need = load.wants(request, now)
        left = load.room(due, now) - need if due < math.inf else -load.with_it(need)
        return due == math.inf, -left, node

    least = nsmallest(CANDIDATES, loads, key=lambda node: (loads[node].backlog, node))
    return sorted(least, key=rank)[:count]


def crowded_out(load: Load, waiting: Iterable[Request], now: float) -> Request | None:
    """The latest of the waiting that could be on time, but not together with the others; or None."""
    for request in sorted(waiting, key=lambda r: (-r.deadline, r.id)):
        due, _ = load.wants(request, now)
        if due < math.inf and load.room(due, now) < 0:
            return request
    return None


def homes(
    profile_of: Callable[[str], Profile],
    nodes: Mapping[str, Sequence[Gpu]],
    requests: Sequence[Request],
    now: float,
    keep_on: Callable[[], bool] = lambda: True,
) -> dict[str, str]:
    """A node for each request, by id: its own, else its state's, else the best; as far as `keep_on` says.

    Most urgent first.
    """
    site = {gpu.slot: node for node, gpus in nodes.items() for gpu in gpus}
    found: dict[str, str] = {}
    members: dict[str, list[Request]] = {node: [] for node in nodes}
    homeless: list[Request] = []
    for request in requests:
        home = request.home
        if home is None or home not in members:
            home = next((site[slot] for slot in request.slots if slot in site), None)
        if home is None:
            homeless.append(request)
        else:
            found[request.id] = home
            members[home].append(request)
    if homeless:
        loads = {node: Load.of(profile_of(node), nodes[node], members[node], now) for node in nodes}
        for request in sorted(homeless, key=lambda r: (r.deadline, r.id)):
            if not keep_on():
                break
            home = choose(loads, request, now)
            assert home is not None
            found[request.id] = home
    return found
