"""What planning sees of the core's books: when flights will end, what is outstanding, what nodes have to do.

And whether what it answers still holds. Only looks: nothing is given or moved here.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from scheduler.config import Config
from scheduler.demand import Demand
from scheduler.dispatch import Load
from scheduler.nodes import Nodes
from scheduler.placement import Layout, layout_of
from scheduler.problem import Assignment, Gpu, Problem, Request, Running, Stage
from scheduler.profile import Profile, slowest
from scheduler.skipping import Computed, left, reach, shared
from scheduler.tracking import QUEUE_DEPTH, Flight, Slot, Tracked
from scheduler.warmth import Warmth
from scheduler.yielding import NOTICE_S, leaving_s

EPSILON = 1e-9
"""Seconds that rounding may lose."""


class View:
    """The books of slots by number, of the requests that have not ended by id, and of nodes, for reading."""

    def __init__(
        self, config: Config, slots: Mapping[int, Slot], active: Mapping[str, Tracked], nodes: Nodes
    ) -> None:
        self.config = config
        self.slots = slots
        self.active = active
        self.nodes = nodes
        self.profile: Profile | None = None
        self.profiles: Mapping[str, Profile] = {}  # of nodes that take longer or shorter
        self.computed: Computed = range
        self.demand = Demand()
        self.warmth = Warmth(self.epoch_of)
        self.warm_groups = False
        self._layout: Layout | None = None

    def rearranged(self) -> None:
        """Slots have come or gone."""
        self._layout = None

    @property
    def layout(self) -> Layout:
        """The aligned blocks of the slots that take orders."""
        if self._layout is None:
            staying = [slot for slot in self.slots.values() if not slot.leaving]
            lone = {slot.slot for slot in staying if Stage.DENOISING not in slot.roles}
            self._layout = Layout(((s.slot, (s.node, s.island)) for s in staying), lone)
        return self._layout

    def profile_of(self, node: str) -> Profile:
        """How long things take on a node."""
        assert self.profile is not None
        return self.profiles.get(node, self.profile)

    def epoch_of(self, slots: tuple[int, ...]) -> int:
        """The epoch of a group of these slots.

        It keeps its name, and so its communicators, until one of its own members is lost.
        """
        return max(self.slots[slot].epoch for slot in slots)

    def work(self, steps: int) -> int:
        """The steps that planning counts for a request of so many."""
        return left(self.computed(steps), 0)

    def steps_left(self, tracked: Tracked) -> int:
        """The steps that planning counts of what a request has not been ordered yet."""
        return left(self.computed(tracked.submission.steps), tracked.next_step)

    def costly(self, members: Iterable[Tracked]) -> Sequence[int]:
        """The next steps of these, from 0, that take time if they share them."""
        return shared((self.computed(t.submission.steps), t.next_step) for t in members)

    def surely(self, assignment: Assignment) -> Assignment:
        """An assignment that may be given, with as many steps as each of its requests will have behind it.

        Those that share steps may pass over different ones: the one that computes the fewest counts.
        """
        if assignment.batch == 1:
            return assignment
        members = [self.active[id] for id in assignment.request_ids]
        steps = reach(self.costly(members), 0, assignment.steps)
        ahead = [left(self.computed(t.submission.steps), t.next_step + steps) for t in members]
        least = min(self.steps_left(t) - after for t, after in zip(members, ahead, strict=True))
        return replace(assignment, steps=least)

    def members(self, flight: Flight) -> list[Tracked]:
        """The flight's requests that have not ended."""
        return [self.active[id] for id in flight.order.request_ids if id in self.active]

    def snapshot(self, now: float, nodes: Iterable[str] | None = None) -> Problem | None:
        """What there is to plan, requests or not, on these nodes or on all; None: no GPU, or no profile."""
        books = self.nodes
        waiting: list[Tracked] = []
        gpus: list[Gpu] = []
        nodes = list(books.slots if nodes is None else nodes)
        for node in nodes:
            gpus += self.gpus(now, node)
            waiting += [t for t in books.members[node].values() if t.next_stage]
        if len(nodes) == len(books.slots):
            waiting += [t for t in books.homeless.values() if t.next_stage]
        if self.profile is None or not gpus:
            return None
        if self.warm_groups:
            sites = self.warmth.sites(self.layout)
            gpus = [replace(gpu, island=f"{gpu.island} {sites.get(gpu.slot)}") for gpu in gpus]
        never = self.never(now)
        # Elsewhere the layout of all is at hand.
        widest = (layout_of(gpus) if self.warm_groups else self.layout).max_degree
        # What runs on several nodes can come to any of them.
        own = {node: self.profile_of(node).limited(widest) for node in nodes}
        apart = books.apart and len(nodes) > 1
        profile = self.profile.limited(widest) if apart else slowest(*own.values())
        return Problem(
            now=now,
            horizon=self.horizon(now),
            round_s=self.config.round_s,
            gpus=tuple(gpus if books.apart else sorted(gpus, key=lambda gpu: gpu.slot)),
            requests=tuple([self.outstanding(tracked, never) for tracked in waiting]),
            profile=profile,
            margin_s=self.config.margin_s,
            slack_s=self.demand.slack(now, profile),
            scale_up=self.config.scale_up,
            running=tuple(self._running(now, gpus)),
            profiles={node: p for node, p in own.items() if p is not profile} if apart else {},
        )

    def loads(self, now: float) -> dict[str, Load]:
        """The load of every node that takes orders."""
        nodes, never, widest = self.nodes, self.never(now), self.layout.max_degree
        for node in nodes.open:
            if node not in nodes.loads and (gpus := self.gpus(now, node)):
                waiting = [self.outstanding(t, never) for t in nodes.members[node].values() if t.next_stage]
                profile = self.profile_of(node).limited(widest)
                nodes.loads[node] = Load.of(profile, gpus, waiting, now)
        return nodes.loads

    def gpus(self, now: float, node: str) -> list[Gpu]:
        """A node's GPUs that take orders, by slot."""
        slots = sorted(self.nodes.slots[node].values(), key=lambda slot: slot.slot)
        flights = {flight.order.id: flight for slot in slots for flight in slot.queue}
        self._predict(now, [flights[order_id] for order_id in sorted(flights)])
        never = self.never(now)
        gpus = []
        for slot in slots:
            free_at = slot.queue[-1].end if slot.queue else now
            if not slot.leaving and free_at < math.inf:
                free_at = max(free_at, never) if slot.full else free_at
                gpus.append(Gpu(slot.slot, free_at, node, slot.roles, slot.island))
        return gpus

    def outstanding(self, tracked: Tracked, never: float) -> Request:
        """What is left of a request that has something to be planned; see `never`."""
        s, flights, steps = tracked.submission, tracked.flights, self.steps_left(tracked)
        waiting = (tracked.next_stage, steps, tracked.holders, tracked.arrived_at, tracked.alone)
        seen = tracked.seen
        if (
            seen
            and not flights
            and seen.home == tracked.home
            and (seen.stage, seen.steps, seen.slots, seen.ready_at, seen.alone) == waiting
        ):
            # Most of a long queue only waits: what planning saw last time will do.
            return seen
        assert tracked.next_stage is not None
        stage, ending = tracked.next_stage, bool(flights) and flights[0].ends_early
        ready_at = max((flight.end for flight in flights), default=tracked.arrived_at)
        if ending:
            stage, steps = Stage.DENOISING, self._steps_behind(flights[0], flights[0].steps_in_the_end)
        elif len(flights) >= QUEUE_DEPTH or any(flight.fails(s.id) for flight in flights):
            ready_at = max(ready_at, never)
        tracked.seen = Request(
            id=s.id,
            width=s.width,
            height=s.height,
            stage=stage,
            steps=steps,
            ready_at=ready_at,
            arrived_at=tracked.arrived_at,
            deadline=tracked.deadline if tracked.claim is None else tracked.claim,
            weight=s.weight,
            lora=s.lora,
            slots=tracked.holders,
            drop_late=tracked.drops_late(self.config.drop_late),
            home=tracked.home,
            alone=tracked.alone,
            promised=tracked.kept,
            ending=ending,
        )
        return tracked.seen

    def interruptible(self, request_id: str) -> Flight | None:
        """The order of a request that can be made to end at its next step, with what is queued behind it."""
        tracked = self.active.get(request_id)
        if tracked is None or not tracked.flights or tracked.kept:
            return None
        first = tracked.flights[0]
        slots = first.order.slots
        alone = all(
            flight.order.stage is Stage.DENOISING
            and flight.order.slots == slots
            and len(flight.order.parts) == 1
            and len(flight.pending) == len(slots)
            and not flight.failing
            for flight in tracked.flights
        )
        if not alone or not first.begun:
            return None
        others = any(len(self.slots[slot].queue) > len(tracked.flights) for slot in slots)
        return None if others else first

    def stops(self, now: float, flight: Flight) -> tuple[int, float]:
        """After how many of its steps a flight could end, and when."""
        assert self.profile is not None
        done, step_s = flight.steps_reported, flight.length / len(flight.costly)
        step = flight.boundary(done + 1)
        if flight.order.yields:
            soon = max(now, flight.end_of(step))
            left_at = now + leaving_s(step_s, self.profile.layers)
            return (done, left_at) if left_at < soon else (step, soon)
        if flight.end_of(step) < now + NOTICE_S:
            step = flight.boundary(step + 1)
        return step, max(now, flight.end_of(step))

    def _running(self, now: float, gpus: Iterable[Gpu]) -> Iterator[Running]:
        """Orders that could be interrupted in time for this plan, with something to be gained."""
        for gpu in gpus:
            queue = self.slots[gpu.slot].queue
            order = queue[0].order if queue else None
            if order is None or order.leader != gpu.slot or order.stage is not Stage.DENOISING:
                continue
            flight = self.interruptible(order.request_ids[0])
            if flight is None:
                continue
            tracked = self.active[order.request_ids[0]]
            step, ends = self.stops(now, flight)
            in_time = ends <= self.horizon(now) or order.yields
            if step < order.steps + len(tracked.flights) - 1 and in_time:
                steps = self._steps_behind(flight, step)
                rest = self.outstanding(tracked, self.never(now))
                rest = replace(rest, stage=Stage.DENOISING, steps=steps, ready_at=ends, slots=order.slots)
                until, in_vain = tracked.flights[-1].end, tracked.in_vain and not flight.steps_reported
                yield Running(rest, order.slots, ends, until, order.yields, in_vain)

    def _steps_behind(self, flight: Flight, steps: int) -> int:
        """What is left, as planning counts it, of a flight's only request after so many of its steps."""
        (part,) = flight.order.parts
        tracked = self.active[part.request_id]
        # An order that is taken back before it begins says nothing of those before its first step.
        behind = part.first_step + steps if steps else min(part.first_step, tracked.steps_done)
        return left(self.computed(tracked.submission.steps), behind)

    def may_give(self, assignment: Assignment) -> bool:
        """Whether an assignment can still become an order."""
        members = [self.active[id] for id in assignment.request_ids if id in self.active]
        slots = [self.slots.get(slot) for slot in assignment.slots]
        return (
            len(members) == assignment.batch > 0
            and all(self._may_run(tracked, assignment) for tracked in members)
            and (len(members) == 1 or _is_batch(members, assignment))
            and (assignment.stage is not Stage.DENOISING or assignment.steps > 0)
            and len(set(assignment.slots)) == len(slots) > 0
            and all(
                s is not None and not s.leaving and assignment.stage in s.roles and not s.full for s in slots
            )
        )

    def _may_run(self, tracked: Tracked, assignment: Assignment) -> bool:
        return (
            tracked.next_stage is assignment.stage
            and len(tracked.flights) < QUEUE_DEPTH
            and not any(flight.fails(tracked.id) for flight in tracked.flights)
            and assignment.steps <= self.steps_left(tracked)
        )

    def horizon(self, now: float) -> float:
        """Until when what frees up can be given orders."""
        return now + self.config.lead_s + EPSILON

    def never(self, now: float) -> float:
        """The moment after the horizon: what can be given no order now is free then at the earliest."""
        return math.nextafter(self.horizon(now), math.inf)

    def _predict(self, now: float, flights: Iterable[Flight]) -> None:
        """Predict the ends of all flights of a node, given in the order in which they run."""
        for flight in flights:
            if flight.begun:
                flight.end = flight.predicted_end(now)
                continue
            begin = now
            for ahead in self._ahead_of(flight):
                begin = max(begin, ahead.end)
            flight.end = begin + flight.expected

    def _ahead_of(self, flight: Flight) -> Iterator[Flight]:
        """Flights that this one waits for, directly."""
        for slot in flight.pending:
            for other in self.slots[slot].queue:
                if other is flight:
                    break
                yield other
        for tracked in self.members(flight):
            yield from tracked.flights[: tracked.flights.index(flight)]


def _is_batch(members: list[Tracked], assignment: Assignment) -> bool:
    """Whether the steps of these can run together."""
    keys = {tracked.submission.batch_key for tracked in members}
    return (
        assignment.stage is Stage.DENOISING
        and len(keys) == 1
        and len(set(assignment.request_ids)) == len(members)
        and not any(tracked.alone for tracked in members)
    )
