"""Win back what a line-up loses: change the ranking a little, line up again, keep what is better.

Earliest deadline first is blind to two things. The cheapest mix is narrow and long, so that a wide
block frees up late: then somebody should hurry. And where not all deadlines can be met, the earliest
may be the wrong one to serve: then it should wait, or be given up.
"""

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import pairwise

from scheduler.policies.board import Work
from scheduler.policies.lineup import Lineup, Ranking, guests_of, line_up_rest, on_time
from scheduler.problem import Stage

SAVING = 0.05
"""Share of the GPU-seconds that a change must save where it brings nobody more in on time."""

NOISE = 1e-6
"""Weights that differ by less are the same."""

Move = Callable[[Ranking, Work], Iterator[Ranking]]
"""Rankings that might bring in a request that is lost."""


def give_up(ranking: Ranking, lost: Work) -> Iterator[Ranking]:
    """Place another one last that weighs no more: the most expensive of the lightest first."""
    rivals = [w for w in _before(ranking, lost) if w.request.weight <= lost.request.weight]
    for rival in sorted(rivals, key=lambda w: (w.request.weight, -w.steps * w.ladder.least_cost)):
        rest = tuple(work for work in ranking.order if work is not rival)
        yield ranking._replace(order=(*rest, rival))


def hurry(ranking: Ranking, lost: Work) -> Iterator[Ranking]:
    """Let another one, placed shortly before, run wider and so end earlier."""
    for rival in reversed(_before(ranking, lost)):
        if rival.stage is Stage.DECODING:
            continue
        at_least = ranking.narrowest.get(rival.request.id, 1)
        for degree in rival.ladder.degrees[1:]:
            if degree > at_least:
                yield ranking._replace(narrowest={**ranking.narrowest, rival.request.id: degree})


def promote(ranking: Ranking, lost: Work) -> Iterator[Ranking]:
    """Place it before others with earlier deadlines, one more at a time."""
    index = ranking.order.index(lost)
    rest = ranking.order[:index] + ranking.order[index + 1 :]
    for place in reversed(range(index)):
        yield ranking._replace(order=(*rest[:place], lost, *rest[place:]))


def join(ranking: Ranking, lost: Work) -> Iterator[Ranking]:
    """Let it share the steps of another of its size, or two others share theirs, who leave it a GPU then."""
    guests = {guest.request.id for found in ranking.guests.values() for guest in found}
    classes: dict[Hashable, list[Work]] = {}
    for work in ranking.order:
        if work.steps and work.can_share(2) and work.request.id not in guests:
            classes.setdefault((work.request.batch_key, work.request.home), []).append(work)
    own = next((works for works in classes.values() if lost in works), [])
    for host in own:
        if host is not lost:
            yield from _joined(ranking, host, lost)
    for works in classes.values():
        for host, guest in pairwise(works):
            if lost is not host and lost is not guest:
                yield from _joined(ranking, host, guest)


def _joined(ranking: Ranking, host: Work, guest: Work) -> Iterator[Ranking]:
    """With one, and all who are with it, in the steps of another, if so many may."""
    guests = dict(ranking.guests)
    found = (*guests.get(host.request.id, ()), guest, *guests.pop(guest.request.id, ()))
    if host.can_share(1 + len(found)):
        guests[host.request.id] = found
        yield ranking._replace(guests=guests)


def improve(lineup: Lineup, moves: Sequence[Move], effort: int) -> Lineup:
    """The best line-up found from this one, spending about `effort` placements.

    Effort and not time, so that the same problem always gets the same plan. What a neighbour has in common
    with the line-up is counted though it is not placed again.
    """
    cost = max(1, len(lineup.ranking.order))
    while effort >= cost:
        found, trail = None, _Trail(lineup)
        for neighbour in _neighbours(lineup, moves):
            found = trail.better(neighbour)
            effort -= cost
            if found is not None or effort < cost:
                break
        if found is None:
            break
        lineup = found
    return lineup


class _Trail:
    """A line-up, and what it was before each of its placements: neighbours go on from where they differ."""

    def __init__(self, lineup: Lineup) -> None:
        self._lineup = lineup
        step = Lineup(lineup.board, lineup.ranking)
        self._before = [step.copy(lineup.ranking)]
        self._lost = [0.0]
        """Weight that was lost until then."""
        for works in line_up_rest(step):
            self._before.append(step.copy(lineup.ranking))
            self._lost.append(self._lost[-1] + _lost(step, works))

    def better(self, ranking: Ranking) -> Lineup | None:
        """The line-up of a ranking of the same work if it is better, given up as soon as it cannot be."""
        begin = _alike(self._lineup.ranking, ranking)
        candidate, lost = self._before[begin].copy(ranking), self._lost[begin]
        most, enough = self._lost[-1], (1 - SAVING) * self._lineup.gpu_seconds
        for works in line_up_rest(candidate, begin):
            lost += _lost(candidate, works)
            if lost > most + 2 * NOISE or (lost > most - NOISE / 2 and candidate.gpu_seconds >= enough):
                return None
        return candidate if _better(candidate, self._lineup) else None


def _lost(lineup: Lineup, works: Sequence[Work]) -> float:
    return sum(work.request.weight for work in works if work.request.id not in lineup.finish)


def _alike(one: Ranking, other: Ranking) -> int:
    """How many of the first are placed alike in two rankings of the same work."""
    changed = guests_of(one) ^ guests_of(other)
    for mine, theirs in ((one.narrowest, other.narrowest), (one.guests, other.guests)):
        if mine is not theirs:
            changed |= {key for key in {*mine, *theirs} if mine.get(key) != theirs.get(key)}
    pairs = zip(one.order, other.order, strict=True)
    differ = (at for at, (a, b) in enumerate(pairs) if a is not b or a.request.id in changed)
    return next(differ, len(one.order))


def _neighbours(lineup: Lineup, moves: Sequence[Move]) -> Iterator[Ranking]:
    ranking = lineup.ranking
    for work in ranking.order:
        if work.request.id not in lineup.finish:
            for move in moves:
                yield from move(ranking, work)


def _before(ranking: Ranking, lost: Work) -> tuple[Work, ...]:
    return ranking.order[: ranking.order.index(lost)]


def _better(candidate: Lineup, than: Lineup) -> bool:
    """More weight on time, or as much for clearly fewer GPU-seconds."""
    weight, before = on_time(candidate), on_time(than)
    if not math.isclose(weight, before, rel_tol=0.0, abs_tol=NOISE):
        return weight > before
    return candidate.gpu_seconds < (1 - SAVING) * than.gpu_seconds
