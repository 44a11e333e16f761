"""Where a policy loses against the bound: what it missed, and who was in the way."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.bound import Bound
from bench.summary import on_time
from scheduler.tracking import Tracked


@dataclass(frozen=True, slots=True)
class Rival:
    """A request whose window overlaps a missed one's; times in seconds from the missed one's arrival."""

    size: str
    arrived: float
    deadline: float
    on_time: bool


@dataclass(frozen=True, slots=True)
class Miss:
    """A request that the bound's schedule has on time and the policy has not; times in seconds.

    `degrees` are those of the orders that began before the deadline. `rivals` are by arrival.
    """

    id: str
    size: str
    arrived_at: float
    allowed: float
    took: float
    degrees: tuple[int, ...]
    rivals: tuple[Rival, ...]


def misses(requests: Sequence[Tracked], limit: Bound) -> list[Miss]:
    """The misses of a run, by arrival.

    As many as the bound is above the run, or more: a policy can also have requests on time that the
    bound's schedule gives up.
    """
    chosen = set(limit.chosen)
    late = [tracked for tracked in requests if tracked.id in chosen and not on_time(tracked)]
    return [_miss(tracked, requests) for tracked in sorted(late, key=lambda t: t.arrived_at)]


def _miss(missed: Tracked, requests: Iterable[Tracked]) -> Miss:
    begin, end = missed.arrived_at, missed.deadline
    degrees = [len(span.slots) for span in missed.spans if span.steps and span.begin < end]
    rivals = [
        Rival(_size(t), t.arrived_at - begin, t.deadline - begin, on_time(t))
        for t in sorted(requests, key=lambda t: t.arrived_at)
        if t is not missed and t.arrived_at < end and t.deadline > begin
    ]
    return Miss(
        id=missed.id,
        size=_size(missed),
        arrived_at=begin,
        allowed=end - begin,
        took=missed.finished_at - begin,
        degrees=tuple(d for i, d in enumerate(degrees) if i == 0 or degrees[i - 1] != d),
        rivals=tuple(rivals),
    )


def _size(tracked: Tracked) -> str:
    return f"{tracked.submission.width}x{tracked.submission.height}"
