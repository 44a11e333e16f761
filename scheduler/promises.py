"""Promises: deadlines that no later arrival may break.

For all promised requests together there is a *witness*: bookings by which all of them are on time. The
core keeps it. A plan, by whatever policy, is held against it before its orders are given: only what
leaves a witness standing is, and what the witness has begin now is given if the policy did not think of
it. A promise is made only where a witness with the new request exists.

A witness is found anew (each request in turn, earliest deadline first, at one degree) or, where that loses
an arrangement that was found before, the old one is kept, moved by what has happened since. Where neither
will do, a line-up is made of it, in which degrees change from step to step.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from scheduler.forecast import forecast
from scheduler.policies.lineup import line_up
from scheduler.problem import ROLES, Assignment, Problem, Request, Stage
from scheduler.timetable import Booking, Rest, Timetable, ends, slip

Witness = tuple[Booking, ...]
NEVER: Mapping[str, float] = {}


@dataclass(frozen=True, slots=True)
class Kept:
    """What of a plan can be given, what is given beyond it, and the witness that then stands.

    `again_at`: plan by then, for something of the witness begins.
    """

    assignments: tuple[Assignment, ...]
    witness: Witness
    again_at: float = math.inf


@dataclass(frozen=True, slots=True)
class Moment:
    """A problem with all that is promised, the witness so far, and when orders end.

    A `Problem` tells the latter only up to its horizon. `room` are the orders that a slot, or a request, can
    still be given.
    """

    problem: Problem
    witness: Witness
    free_at: Mapping[int, float]
    ready_at: Mapping[str, float]
    room: Mapping[int | str, int]


@dataclass(slots=True)
class _State:
    """Slots and promised requests once some orders have been given."""

    free_at: dict[int, float]
    rests: dict[str, Rest]
    room: dict[int | str, int]
    done: dict[str, float] = field(default_factory=dict)
    """When those will have ended whose last order has been given."""

    @classmethod
    def of(cls, moment: Moment) -> "_State":
        now = moment.problem.now
        rests = {
            r.id: Rest(r, r.stage, r.steps, max(now, moment.ready_at[r.id]))
            for r in moment.problem.requests
            if r.promised
        }
        free_at = {slot: max(now, end) for slot, end in moment.free_at.items()}
        return cls(free_at, rests, dict(moment.room))

    def without(self, request_id: str) -> "_State":
        """The state but for one request."""
        rests = {key: rest for key, rest in self.rests.items() if key != request_id}
        return replace(self, rests=rests)

    def after(self, given: Assignment, now: float) -> "_State":
        """The state with one more order."""
        free_at, rests, room, done = dict(self.free_at), dict(self.rests), dict(self.room), dict(self.done)
        places: list[int | str] = [*given.slots, *given.request_ids]
        for place in places:
            room[place] = room.get(place, 0) - 1
        ready = [rests[key].ready for key in given.request_ids if key in rests]
        begin = max(now, *ready, *[free_at[slot] for slot in given.slots])
        end = max(given.end, begin + given.end - given.begin)
        free_at.update(dict.fromkeys(given.slots, end))
        for key in given.request_ids:
            if key in rests:
                rest = rests[key] = replace(rests[key])
                if rest.done(given.stage, given.steps, end):
                    del rests[key]
                    done[key] = end
        return _State(free_at, rests, room, done)


def admit(moment: Moment, request: Request) -> Witness | None:
    """A witness with one more request, whose deadline is kept; None: there is none that we can find."""
    problem, witness, state = moment.problem, moment.witness, _State.of(moment)
    limits = _limits(problem, state, witness)
    limits[request.id] = _limit(problem, request)
    state.rests[request.id] = Rest.of(request, problem.now)
    found = _anew(problem, state, limits)
    if _on_time(found, limits, state):
        return found
    others = state.without(request.id)
    standing = _moved(others, witness)
    if standing is not None and _on_time(standing, limits, others):
        table = Timetable(problem, state.free_at)
        table.take(standing)
        added = table.place(Rest.of(request, problem.now), limits[request.id])
        if added and added[-1].end <= limits[request.id]:
            return (*standing, *added)
    lined_up = _lined_up(problem, state)
    return lined_up if lined_up is not None and _on_time(lined_up, limits, state) else None


def earliest(moment: Moment, request: Request) -> float:
    """The end of a request that is fitted in as early as can be beside what is promised.

    Infinity where no GPU can do it.
    """
    added = _beside(moment, request, -math.inf)[1]
    return added[-1].end if added else math.inf


def cheapest(moment: Moment, request: Request) -> Witness | None:
    """A witness with one more request, without a deadline, at its cheapest; None where no GPU can do it."""
    standing, added = _beside(moment, request, math.inf)
    return (*standing, *added) if added else None


def _beside(moment: Moment, request: Request, limit: float) -> tuple[Witness, list[Booking]]:
    """The witness as it stands, and bookings of one more request beside it."""
    state = _State.of(moment)
    standing = _moved(state, moment.witness)
    if standing is None:
        standing = _anew(moment.problem, state, _limits(moment.problem, state, moment.witness))
    table = Timetable(moment.problem, state.free_at)
    table.take(standing)
    return standing, table.place(Rest.of(request, moment.problem.now), limit)


def keep(moment: Moment, assignments: Sequence[Assignment]) -> Kept:
    """Hold orders against the promises."""
    problem, witness, before = moment.problem, moment.witness, _State.of(moment)
    now = problem.now
    if not before.rests:
        return Kept(tuple(assignments), ())
    limits = _limits(problem, before, witness)
    after = before
    for given in assignments:
        after = after.after(given, now)

    # The old witness may stand as it is.
    standing = _moved(after, witness)
    if standing is not None and _on_time(standing, limits, after):
        kept = _complete(problem, after, standing, assignments)
        if len(kept.assignments) == len(assignments):
            return kept
    # Or a new one in which what has been given no order begins later, the old one, or another new one.
    later = problem.horizon + problem.round_s
    idle = {key: later for key, rest in after.rests.items() if rest.ready <= problem.horizon}
    for find in (
        lambda: _anew(problem, after, limits, idle),
        lambda: standing,
        lambda: _anew(problem, after, limits),
    ):
        candidate = find()
        if candidate is not None and _on_time(candidate, limits, after):
            return _complete(problem, after, candidate, assignments)

    # Else the old one decides what can be given. It is late only where it was before.
    base = _moved(before, witness) or _anew(problem, before, limits)
    state, passed = before, list[Assignment]()
    for given in assignments:
        candidate = _moved(then := state.after(given, now), base)
        if candidate is not None and _on_time(candidate, limits, then):
            state = then
            passed.append(given)
    standing = _moved(state, base)
    assert standing is not None
    return _complete(problem, state, standing, passed)


def _limit(problem: Problem, request: Request) -> float:
    """By when a request is to be done: with the margin, and a little more than rounding can ever lose."""
    return request.deadline - problem.margin_s - 1e4 * slip(problem.now)


def _limits(problem: Problem, state: _State, witness: Witness) -> dict[str, float]:
    """By when each promised request is to be done; what cannot be any more, at least no later than now."""
    limits = {key: _limit(problem, rest.request) for key, rest in state.rests.items()}
    standing = _moved(state, witness)
    known = ends(standing if standing is not None else _anew(problem, state, limits))
    allowed = slip(problem.now)
    return {
        key: limit if known.get(key, math.inf) <= limit else known.get(key, math.inf) + allowed
        for key, limit in limits.items()
    }


def _on_time(witness: Witness, limits: Mapping[str, float], state: _State) -> bool:
    known = ends(witness)
    if any(end > limits[key] for key, end in state.done.items()):
        return False
    return all(known.get(key, math.inf) <= limits[key] for key in state.rests)


def _anew(
    problem: Problem,
    state: _State,
    limits: Mapping[str, float],
    not_before: Mapping[str, float] = NEVER,
) -> Witness:
    """All promised requests in turn, earliest deadline first; some may be late."""
    table = Timetable(problem, state.free_at)
    found: list[Booking] = []
    for key in sorted(state.rests, key=lambda key: (limits[key], key)):
        earliest = not_before.get(key, -math.inf)
        bookings = table.place(state.rests[key], limits[key], earliest)
        table.take(bookings)
        found += bookings
    return tuple(found)


def _lined_up(problem: Problem, state: _State) -> Witness | None:
    """What a line-up has all promised requests do; None: it has not all on time."""
    gpus = tuple(replace(gpu, free_at=state.free_at[gpu.slot]) for gpu in problem.gpus)
    requests = tuple(
        replace(rest.request, stage=rest.stage, steps=rest.steps, ready_at=rest.ready, weight=1.0)
        for rest in state.rests.values()
    )
    lineup = forecast(replace(problem, gpus=gpus, requests=requests, running=()))
    if len(lineup.finish) < len(requests):
        return None
    log: list[Booking] = []
    line_up(lineup.board, lineup.ranking, log)
    # A line-up takes encodings and decodings lightly: what is in the way of others moves behind them.
    moved = _moved(state, tuple(sorted(log, key=_turn)))
    return moved if moved is not None and _sound(problem, moved) else None


def _sound(problem: Problem, witness: Witness) -> bool:
    """Whether bookings, by time, have each request's stages in their order, on GPUs that can run them."""
    roles = {gpu.slot: gpu.roles for gpu in problem.gpus}
    last: dict[str, int] = {}
    for booking in witness:
        rank = ROLES.index(booking.stage)
        if rank < last.get(booking.request_id, 0):
            return False
        last[booking.request_id] = rank
        if any(booking.stage not in roles[slot] for slot in booking.slots):
            return False
    return True


def _turn(booking: Booking) -> tuple[float, int, str]:
    """Bookings by time; what takes none comes before what follows it."""
    return booking.begin, ROLES.index(booking.stage), booking.request_id


def _moved(state: _State, witness: Witness) -> Witness | None:
    """The witness without what has been ordered since, and later where its slots are; None: it has gaps."""
    free_at = dict(state.free_at)
    ready = {key: rest.ready for key, rest in state.rests.items()}
    moved: list[Booking] = []
    for booking in sorted(_left(state, witness), key=_turn):
        if any(slot not in free_at for slot in booking.slots):
            return None
        key = booking.request_id
        begin = max(booking.begin, ready[key], *[free_at[slot] for slot in booking.slots])
        end = begin + (booking.end - booking.begin)  # so that no time stays none
        free_at.update(dict.fromkeys(booking.slots, end))
        ready[key] = end
        moved.append(booking if begin == booking.begin else replace(booking, begin=begin, end=end))
    booked = {booking.request_id for booking in moved if booking.stage is Stage.DECODING}
    return tuple(moved) if booked == state.rests.keys() else None


def _left(state: _State, witness: Witness) -> Iterable[Booking]:
    """What of the witness is still to be done."""
    of: dict[str, list[Booking]] = {key: [] for key in state.rests}
    for booking in witness:
        if booking.request_id in of:
            of[booking.request_id].append(booking)
    for key, bookings in of.items():
        rest = state.rests[key]
        steps = rest.steps
        found = []
        for booking in reversed(bookings):
            if booking.stage is Stage.DENOISING:
                if steps <= 0:
                    continue
                if booking.steps > steps:
                    share = (booking.end - booking.begin) * steps / booking.steps
                    booking = replace(booking, steps=steps, begin=booking.end - share)
                steps -= booking.steps
            elif booking.stage is Stage.ENCODING and rest.stage is not Stage.ENCODING:
                continue
            found.append(booking)
        # A step that was lost, as with its executor, is booked nowhere.
        if steps == 0:
            yield from reversed(found)


def _complete(problem: Problem, state: _State, witness: Witness, given: Sequence[Assignment]) -> Kept:
    """With an order for all of the witness that can begin now, of a round at most."""
    orders = list(given)
    waiting: set[int] = set()  # slots that somebody waits for
    seen: set[str] = set()
    again_at = math.inf
    lead, slack = problem.horizon - problem.now, slip(problem.now)
    for booking in sorted(witness, key=_turn):
        key = booking.request_id
        rest = state.rests.get(key)
        possible = max([state.free_at[slot] for slot in booking.slots])
        if (
            rest is None
            or key in seen
            or not waiting.isdisjoint(booking.slots)
            or state.room[key] < 1
            or any(state.room[slot] < 1 for slot in booking.slots)
        ):
            pass
        elif max(possible, rest.ready, booking.begin - 2 * slack) <= problem.horizon:
            order = _order(problem, booking)
            orders.append(order)
            state = state.after(order, problem.now)
        elif booking.begin > max(possible, rest.ready) + slack:
            # It waits for its time; of all else an event will remind us.
            again_at = min(again_at, booking.begin - lead + slack)
        seen.add(key)
        waiting.update(booking.slots)
    standing = _moved(state, witness)
    assert standing is not None
    return Kept(tuple(orders), standing, again_at)


def _order(problem: Problem, booking: Booking) -> Assignment:
    """The first of a booking, as much as fits into a round."""
    steps, end = booking.steps, booking.end
    if steps:
        step = (booking.end - booking.begin) / steps
        steps = min(steps, max(1, int(problem.round_s / step + 1e-9)))
        end = booking.begin + steps * step
    return Assignment((booking.request_id,), booking.stage, booking.slots, steps, booking.begin, end)
