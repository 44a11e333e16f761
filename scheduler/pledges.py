"""Pledges: what the core has promised, and to whom it has given a claim.

`promises` finds and checks witnesses; here the one of all that is promised is kept, request by request,
from one plan to the next.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from scheduler.problem import Assignment, Problem, Request
from scheduler.promises import Moment, Witness, admit, cheapest, earliest, keep
from scheduler.timetable import Booking
from scheduler.tracking import QUEUE_DEPTH, Tracked
from scheduler.view import View

CLAIM_SHARE = 4
"""One request has a claim at a time for so many GPUs of a node."""


@dataclass(frozen=True, slots=True)
class Offer:
    """Whether a deadline can be promised, and by which witness, on which node; good for this moment only.

    `earliest_s`: the seconds from arrival for which it could be, infinity where it could not.
    """

    earliest_s: float
    home: str | None = None
    witness: Witness | None = None


class Pledges:
    """The witness of all that is promised or claimed."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._nodes = view.nodes
        self._witness: dict[str, Witness] = {}  # by request; of all together

    def offer(self, parts: Iterable[tuple[str | None, Problem]], request: Request) -> Offer:
        """Whether the deadline of a request could be promised.

        `parts` are the problems that could take it, each with its node.
        """
        soonest = math.inf
        for home, problem in parts:
            moment = self._moment(problem)
            found = admit(moment, request)
            if found is not None:
                return Offer(request.deadline - request.arrived_at, home, found)
            soonest = min(soonest, earliest(moment, request) + problem.margin_s)
        return Offer(soonest - request.arrived_at)

    def remember(self, witness: Witness) -> None:
        """Keep the bookings of a witness, request by request."""
        of: dict[str, list[Booking]] = {}
        for booking in witness:
            of.setdefault(booking.request_id, []).append(booking)
        self._witness.update((key, tuple(bookings)) for key, bookings in of.items())

    def forget(self, request_id: str) -> None:
        """A request has ended."""
        self._witness.pop(request_id, None)

    def keep(
        self, now: float, nodes: Iterable[str], assignments: Sequence[Assignment]
    ) -> tuple[list[Assignment], float]:
        """Of a plan for `nodes` the orders that break no promise, and those that promises need.

        And when to plan next, for something of the witness begins; infinity where nothing does.
        """
        orders, again_at = list(assignments), math.inf
        for group in self._groups(node for node in nodes if node in self._nodes.slots):
            if not any(t.kept for node in group for t in self._planned_on(node)):
                continue
            problem = self._view.snapshot(now, group)
            if problem is None:
                continue
            slots = {gpu.slot for gpu in problem.gpus}
            mine = [a for a in orders if slots.issuperset(a.slots) and self._view.may_give(a)]
            wanted = {self._view.surely(a): a for a in mine}
            kept = keep(self._moment(problem), list(wanted))
            self.remember(kept.witness)
            again_at = min(again_at, max(now, kept.again_at))
            orders = [a for a in orders if a not in mine] + [wanted.get(a, a) for a in kept.assignments]
        return orders, again_at

    def claim(self, now: float, nodes: Iterable[str]) -> None:
        """Give those that have waited for too long a claim on GPUs, as if they had been promised a time."""
        view = self._view
        if view.config.age_bound_s == math.inf or view.profile is None:
            return
        for group in self._groups(nodes):
            members = {t.id: t for node in group for t in self._planned_on(node) if t.next_stage}
            for tracked in members.values():
                if tracked.claim is not None and tracked.claim < now:
                    tracked.claim = tracked.seen = None
            claims = sum(tracked.claim is not None for tracked in members.values())
            aged = [t for t in members.values() if self._has_aged(now, t)]
            slots = sum(len(self._nodes.slots[node]) for node in group)
            aged.sort(key=lambda t: (t.arrived_at, t.id))
            for tracked in aged[: max(0, max(1, slots // CLAIM_SHARE) - claims)]:
                problem = view.snapshot(now, group)
                request = problem and next((r for r in problem.requests if r.id == tracked.id), None)
                found = problem and request and cheapest(self._moment(problem), request)
                if problem and found:
                    self.remember(found)
                    tracked.claim = max(b.end for b in found if b.request_id == tracked.id) + problem.margin_s
                    tracked.seen = None

    def _has_aged(self, now: float, tracked: Tracked) -> bool:
        hopeless = tracked.late or tracked.deadline == math.inf or tracked.deadline < now
        # While an order is being taken back, nobody knows what will be left to do.
        sound = not any(flight.fails(tracked.id) for flight in tracked.flights)
        aged = now - tracked.arrived_at > self._view.config.age_bound_s
        return aged and hopeless and sound and not tracked.kept

    def _groups(self, nodes: Iterable[str]) -> list[list[str]]:
        """Nodes that are planned together."""
        return [[node] for node in nodes] if self._nodes.apart else [list(nodes)]

    def _planned_on(self, node: str) -> Iterator[Tracked]:
        """What is planned there, or with it where nodes are not planned apart."""
        yield from self._nodes.members[node].values()
        if not self._nodes.apart:
            yield from self._nodes.homeless.values()

    def _moment(self, problem: Problem) -> Moment:
        """What promises have to know beyond a problem."""
        free_at: dict[int, float] = {}
        ready_at: dict[str, float] = {}
        room: dict[int | str, int] = {}
        witness: list[Booking] = []
        for gpu in problem.gpus:
            queue = self._view.slots[gpu.slot].queue
            free_at[gpu.slot] = queue[-1].end if queue else problem.now
            room[gpu.slot] = QUEUE_DEPTH - len(queue)
        for request in problem.requests:
            if request.promised:
                flights = self._view.active[request.id].flights
                ready_at[request.id] = max((flight.end for flight in flights), default=problem.now)
                failing = any(flight.fails(request.id) for flight in flights)
                room[request.id] = 0 if failing else QUEUE_DEPTH - len(flights)
                witness += self._witness.get(request.id, ())
        return Moment(problem, tuple(witness), free_at, ready_at, room)
