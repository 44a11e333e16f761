"""The orders that are out: whose turn it is, which have ended on all their slots, and which hang.

Every executor runs its orders by id, and a request's orders follow each other.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from scheduler.orders import Order, Report
from scheduler.tracking import Flight, Tracked
from scheduler.view import View


class Flights:
    """Flights by order id. Those of a slot and of a request also stand in their own books, by id."""

    def __init__(self, view: View, requests: Mapping[str, Tracked]) -> None:
        self._view = view
        self._requests = requests
        self._out: dict[int, Flight] = {}
        self._may_begin: dict[int, Flight] = {}
        self._running: dict[int, Flight] = {}  # begun, and nothing planned after them yet
        self._hanging: dict[int, Flight] = {}  # to be aborted

    def __len__(self) -> int:
        return len(self._out)

    def __iter__(self) -> Iterator[Flight]:
        return iter(self._out.values())

    def get(self, order_id: int) -> Flight | None:
        """The flight of an order that is out, or None."""
        return self._out.get(order_id)

    # Their beginning.

    def add(self, order: Order, length: float, costly: Sequence[int]) -> None:
        """An order of so many seconds, predicted, has been given; `costly` as in a `Flight`."""
        flight = Flight(order, length, set(order.slots), costly)
        self._out[order.id] = flight
        for slot in order.slots:
            self._view.slots[slot].queue.append(flight)
        for tracked in self._view.members(flight):
            tracked.flights.append(flight)
        self.look_at([flight])

    def look_at(self, flights: Iterable[Flight]) -> None:
        """The turn of these may have come."""
        self._may_begin.update((flight.order.id, flight) for flight in flights)

    def begin(self, now: float) -> Iterator[Flight]:
        """Mark the flights whose turn has come as begun."""
        for order_id in sorted(self._may_begin):
            flight = self._may_begin.pop(order_id)
            if self._turn_has_come(flight):
                flight.begun_at = flight.marked_at = now
                flight.end = flight.predicted_end(now)
                self._running[order_id] = flight
                yield flight

    def _turn_has_come(self, flight: Flight) -> bool:
        return (
            flight.order.id in self._out
            and not flight.begun
            and not flight.reports
            and all(self._view.slots[slot].queue[0] is flight for slot in flight.pending)
            and all(tracked.flights[0] is flight for tracked in self._view.members(flight))
        )

    # Planning ahead.

    def next_end(self) -> float:
        """When the first ends of those behind which nothing has been planned yet; infinity: there is none."""
        return min((flight.end for flight in self._running.values()), default=math.inf)

    def ending(self, now: float, lead_s: float) -> list[Flight]:
        """Those that end within a lead, each of them once: it is time to plan what comes behind them."""
        found = []
        for flight in list(self._running.values()):
            # The very comparison of who asks for `next_end`: else rounding could wake it for ever.
            if flight.end - lead_s <= now:
                flight.end = flight.predicted_end(now)
                if flight.end - lead_s <= now:
                    del self._running[flight.order.id]
                    found.append(flight)
        return found

    # Their end.

    def note(self, flight: Flight, report: Report) -> None:
        """A member has reported."""
        flight.pending.discard(report.slot)
        flight.reports.append(report)
        self.look_at([flight])
        slot = self._view.slots.get(report.slot)
        if slot is None:
            return
        slot.queue.remove(flight)
        slot.busy_seconds += report.seconds
        if slot.queue:
            self.look_at([slot.queue[0]])
        for tracked in self._view.members(flight):
            if tracked.id in report.held:
                tracked.held[report.slot] = report.held[tracked.id]

    def settle(self, now: float, flight: Flight, grace_s: float) -> Iterator[Flight]:
        """Flights that are over with the latest report of this one: itself first, then who waited for it.

        They are out no more. Each is to be closed for all its requests before the next is asked for. Where a
        member has failed the others have `grace_s` to report.
        """
        if flight.pending and flight.failing:
            flight.abort_at = min(flight.abort_at, now + grace_s)
            self._hanging[flight.order.id] = flight
        reported = [flight]
        while reported:
            flight = reported.pop()
            if flight.pending or flight.order.id not in self._out:
                continue
            if not flight.failing and any(t.flights[0] is not flight for t in self._view.members(flight)):
                # Reports of a predecessor are still on their way from other members.
                continue
            for books in (self._out, self._running, self._hanging):
                books.pop(flight.order.id, None)
            yield flight
            members = [self._requests[id] for id in flight.order.request_ids]
            reported += [tracked.flights[0] for tracked in members if tracked.flights]

    def close(self, flight: Flight, tracked: Tracked) -> None:
        """A flight that is over is dealt with for one of its requests, whose next one may begin."""
        tracked.flights.remove(flight)
        self.look_at(tracked.flights[:1])

    def next_abort(self) -> float:
        """When `overdue` has the first to tell of; infinity: nothing hangs."""
        return min((flight.abort_at for flight in self._hanging.values()), default=math.inf)

    def overdue(self, now: float) -> list[Flight]:
        """Flights whose silent members are to be aborted now, each of them once."""
        found = [flight for flight in self._hanging.values() if flight.abort_at <= now]
        for flight in found:
            flight.abort_at = math.inf
            del self._hanging[flight.order.id]
        return found
