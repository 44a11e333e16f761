"""The core: events in, effects out. No clock, no network, no threads.

The service feeds it real events and the simulator virtual ones. Each event method takes the time and
returns effects. Planning is three calls, so that a policy can run elsewhere and take its time:
`problem` (a snapshot), the policy, `commit` (what of the plan still holds becomes orders).
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from scheduler.demand import Demand
from scheduler.dispatch import Load, best, choose, crowded_out
from scheduler.nodes import Nodes
from scheduler.orders import Abort, Changed, Effect, Give, Order, Outcome, Part, Release, Report, Truncate
from scheduler.placement import Layout, layout_of
from scheduler.problem import EVERY_ROLE, ROLES, Assignment, Gpu, Plan, Problem, Request, Stage
from scheduler.profile import Profile
from scheduler.promises import Moment, Witness, admit, cheapest, earliest, keep
from scheduler.skipping import Computed, left, reach
from scheduler.timetable import Booking
from scheduler.tracking import QUEUE_DEPTH, Flight, Slot, Span, Submission, Tracked
from scheduler.warmth import WARM_UP_S, Warmth


@dataclass(frozen=True, slots=True)
class Config:
    """Knobs of the core; times in seconds.

    `round_s` bounds an order's length and the time between plans; `lead_s` is how long before the end
    of its last order an executor can be given the next; `margin_s` is kept free before deadlines;
    `attempts` failed orders end a request; `grace_s` is how long the other members of a group may
    still report after one has failed, before they are aborted. Who is late, or has no deadline, gets a
    claim on GPUs once it has been here for `age_bound_s`. `scale_up` is how freely idle GPUs are spent on
    finishing early (see `Problem`).
    """

    round_s: float = 0.25
    lead_s: float = 0.05
    margin_s: float = 0.0
    attempts: int = 3
    grace_s: float = 2.0
    drop_late: bool = False
    age_bound_s: float = math.inf
    scale_up: float = 1.0


EPSILON = 1e-9
"""Seconds that rounding may lose."""
CLAIM_SHARE = 4
"""One request has a claim at a time for so many GPUs of a node."""
MOVES = 4
"""Requests that change their node in one decision, at most."""


@dataclass(frozen=True, slots=True)
class Offer:
    """Whether a deadline can be promised, and by which witness, on which node; good for this moment only.

    `earliest_s`: the seconds from arrival for which it could be, infinity where it could not.
    """

    earliest_s: float
    home: str | None = None
    witness: Witness | None = None


class Rounds:
    """Requests, executors and what runs where."""

    def __init__(self, config: Config, profile: Profile | None = None) -> None:
        self.config = config
        self.profile = profile
        self.requests: dict[str, Tracked] = {}
        self.slots: dict[int, Slot] = {}
        self.plans = 0
        self.rejected = 0  # assignments that no policy should have made
        self.refused = 0  # assignments that would have broken a promise
        self._active: dict[str, Tracked] = {}
        self._demand = Demand()
        self._flights: dict[int, Flight] = {}
        self._order_id = 0
        self._epoch = 0
        # Whether groups of several are only used once they are warm; costly ones (NCCL) should be.
        self.warm_groups = False
        self._warmth = Warmth(self._epoch_of)
        self.roles: frozenset[Stage] = frozenset()
        self.computed: Computed = range
        """The steps that cost something, of so many; all of them where there is no step cache."""
        # Who denoises but cannot encode needs the condition, too, to go on from a checkpoint.
        self._all_encode = True
        self._layout: Layout | None = None
        self._nodes = Nodes()
        self._may_begin: dict[int, Flight] = {}
        self._running: dict[int, Flight] = {}  # begun, and nothing planned after them yet
        self._hanging: dict[int, Flight] = {}  # to be aborted
        self._witness: dict[str, Witness] = {}  # by request; of all together
        self._planning: list[str] = []  # nodes
        self._dirty = False
        self._version = 0
        self._planned_version = 0
        self._again_at = math.inf

    # Events of clients.

    def submit(
        self,
        now: float,
        submission: Submission,
        arrived_at: float | None = None,
        checkpoint: int = 0,
        promised: bool = False,
        offer: Offer | None = None,
    ) -> list[Effect]:
        """Accept a request; `arrived_at`, `checkpoint` (steps behind it) and `promised` where it is resumed.

        With an `offer` for it that was made just now, its deadline is promised.
        """
        if submission.id in self.requests:
            raise ValueError(f"request id {submission.id!r} is in use")
        tracked = Tracked.new(submission, now if arrived_at is None else arrived_at)
        tracked.checkpoint = checkpoint
        self._demand.note(submission, self.work(submission.steps))
        self.requests[tracked.id] = self._active[tracked.id] = tracked
        self._nodes.add(tracked)
        tracked.promised = promised
        self._rewind(tracked)
        if offer and offer.witness is not None:
            tracked.promised = True
            self._remember(offer.witness)
            if offer.home is not None:
                self._nodes.settle(tracked, offer.home)
        return self._changed(now, tracked)

    def offer(self, now: float, submission: Submission, arrived_at: float | None = None) -> Offer:
        """Whether the deadline of a request could be promised beside those that have been."""
        wait = math.inf if submission.deadline_s is None else submission.deadline_s
        arrived_at = now if arrived_at is None else arrived_at
        request = Request(
            submission.id,
            submission.width,
            submission.height,
            Stage.ENCODING,
            self.work(submission.steps),
            now,
            arrived_at,
            arrived_at + wait,
            submission.weight,
            promised=True,
        )
        soonest = math.inf
        for home, moment in self.best_parts(now, request):
            promised = self._promised(moment)
            found = admit(promised, request)
            if found is not None:
                return Offer(wait, home, found)
            soonest = min(soonest, earliest(promised, request) + moment.margin_s)
        return Offer(soonest - arrived_at)

    def best_parts(self, now: float, request: Request) -> list[tuple[str | None, Problem]]:
        """What is planned together and would take the request: the best few nodes, or all as one."""
        nodes = self._nodes
        if self.profile is None or not nodes.open:
            return []
        homes = None
        if nodes.apart and len(nodes.open) > 1:
            homes = best(self._loads(now), self.profile.limited(self.layout.max_degree), request, now)
        elif nodes.apart:
            homes = nodes.open
        parts: list[tuple[str | None, Problem | None]] = [(None, self.snapshot(now))]
        if homes is not None:
            parts = [(home, self.snapshot(now, [home])) for home in homes]
        return [(home, moment) for home, moment in parts if moment is not None]

    def cancel(self, now: float, request_id: str) -> list[Effect]:
        """End a request; what runs of it stops at the next step boundary. KeyError: unknown."""
        tracked = self.requests[request_id]
        return [] if tracked.stage.ended else self._end(now, tracked, Stage.CANCELLED)

    def checkpointed(self, request_id: str, step: int) -> None:
        """A checkpoint after `step` steps has arrived."""
        if tracked := self._active.get(request_id):
            tracked.checkpoint = max(tracked.checkpoint, step)
            if not tracked.flights and not tracked.holders:
                # It was to go on from an older one, which may be gone by then.
                self._rewind(tracked)
                self._nodes.touch(tracked.home)
                self._dirty = True
                self._version += 1

    def forget(self, request_id: str) -> bool:
        """Drop a request from memory once it has ended and nothing of it is out; whether it is gone."""
        tracked = self.requests[request_id]
        if tracked.stage.ended and not tracked.flights:
            del self.requests[request_id]
            return True
        return False

    @property
    def outstanding(self) -> int:
        """Requests that have not ended."""
        return len(self._active)

    @property
    def busy(self) -> bool:
        """Whether any order is out."""
        return bool(self._flights)

    def work(self, steps: int) -> int:
        """The steps that planning counts for a request of so many."""
        return left(self.computed(steps), 0)

    @property
    def lacking(self) -> tuple[Stage, ...]:
        """Stages that none of the executors can run: what is to be done there waits."""
        return tuple(role for role in ROLES if self.roles and role not in self.roles)

    @property
    def measuring(self) -> bool:
        """Whether step times are being measured."""
        return any(flight.order.measures for flight in self._flights.values())

    @property
    def preparing(self) -> bool:
        """Whether step times are being measured or groups are being warmed."""
        return any(flight.order.stage is None for flight in self._flights.values())

    def order(self, order_id: int) -> Order | None:
        """An order that is out, or None."""
        flight = self._flights.get(order_id)
        return flight.order if flight else None

    @property
    def layout(self) -> Layout:
        """The aligned blocks of the slots that take orders."""
        if self._layout is None:
            staying = [slot for slot in self.slots.values() if not slot.leaving]
            lone = {slot.slot for slot in staying if Stage.DENOISING not in slot.roles}
            self._layout = Layout(((s.slot, (s.node, s.island)) for s in staying), lone)
        return self._layout

    # Events of executors.

    def executor_joined(
        self,
        now: float,
        slot: int,
        node: str = "",
        roles: frozenset[Stage] = EVERY_ROLE,
        island: str = "",
    ) -> list[Effect]:
        """An executor is ready for orders about the stages in `roles`; groups stay within an island."""
        if slot in self.slots:
            raise ValueError(f"slot {slot} is taken")
        self._epoch += 1
        self.slots[slot] = Slot(slot, node, self._epoch, roles, island)
        self._nodes.join(self.slots[slot])
        self._arrange()
        return self._touch(now)

    def executor_holds(self, now: float, slot: int, held: Mapping[str, int]) -> list[Effect]:
        """What an executor that has just joined holds from before: steps behind each request's state."""
        effects: list[Effect] = []
        for request_id, step in held.items():
            tracked = self._active.get(request_id)
            if tracked is None or step > tracked.submission.steps:
                effects.append(Release(request_id, (slot,)))
                continue
            tracked.held[slot] = step
            if not tracked.flights:
                self._rewind(tracked)
            self._nodes.touch(tracked.home)
            effects.append(Changed(request_id))
        return effects + self._touch(now)

    def executor_leaving(self, now: float, slot: int) -> list[Effect]:
        """No more orders for this one; it hands back what it has not begun."""
        self.slots[slot].leaving = True
        self._nodes.leave(self.slots[slot])
        self._arrange()
        return self._touch(now)

    def executor_lost(self, now: float, slot: int) -> list[Effect]:
        """An executor is gone, and with it what it held; its groups are aborted."""
        lost = self.slots.pop(slot)
        self._nodes.lose(lost)
        self._arrange()
        self._epoch += 1
        for tracked in self._active.values():
            tracked.held.pop(slot, None)
            if slot in tracked.holders:
                tracked.holders = tuple(s for s in tracked.holders if s != slot)
                if not tracked.flights:
                    self._rewind(tracked)
        flights = list(lost.queue)
        for flight in flights:
            outcome = Outcome.ABORTED if flight.begun else Outcome.RETURNED
            seconds = now - flight.begun_at if flight.begun else 0.0
            report = Report(slot, outcome, seconds=seconds, error=f"executor {slot} was lost")
            self._note(flight, report)
        effects: list[Effect] = []
        peers = {peer for flight in flights for peer in flight.pending}
        for peer in peers:
            self.slots[peer].epoch = self._epoch
        if peers:
            effects.append(Abort(self._epoch, tuple(sorted(peers)), (slot,)))
        for flight in flights:
            effects += self._settle(now, flight)
        return effects + self._touch(now)

    def step_done(self, now: float, order_id: int) -> list[Effect]:
        """The leader has finished one more step of an order."""
        flight = self._flights.get(order_id)
        if flight is None:
            return []
        flight.steps_reported = min(flight.steps_reported + 1, flight.order.steps)
        flight.marked_at = now
        effects: list[Effect] = []
        for part in flight.order.parts:
            tracked = self._active.get(part.request_id)
            if tracked and tracked.id not in flight.withdrawn:
                tracked.steps_done = part.first_step + flight.steps_reported
                effects.append(Changed(tracked.id))
        return effects

    def order_done(self, now: float, order_id: int, report: Report) -> list[Effect]:
        """An order has ended on one of its slots."""
        flight = self._flights.get(order_id)
        if flight is None or report.slot not in flight.pending:
            return []
        self._note(flight, report)
        self._nodes.touch_slots(flight.order.slots)
        return self._settle(now, flight) + self._touch(now)

    def measure(self, now: float, slots: tuple[int, ...]) -> list[Effect]:
        """Give an order to measure step times, which the service fills in."""
        return self._give(now, self._order(slots, measures=True), math.inf) + self._touch(now)

    def warm_up(self, now: float) -> list[Effect]:
        """Order groups that are cold to be used once, where `warm_groups` says so."""
        if not self.warm_groups:
            return []
        under_way = {flight.order.slots for flight in self._flights.values() if flight.order.stage is None}
        effects: list[Effect] = []
        for slots in self._warmth.cold(self.layout, under_way):
            effects += self._give(now, self._order(slots), WARM_UP_S)
        return effects + self._touch(now) if effects else []

    # Planning.

    def wake_at(self, now: float) -> float:
        """When to plan next, or to call `tick`; infinity: after the next event."""
        if self._dirty:
            return now
        times = [flight.abort_at for flight in self._hanging.values()]
        if any(t.next_stage for t in self._active.values()):
            times.append(self._again_at)
            times += [flight.end - self.config.lead_s for flight in self._running.values()]
            times.append(self._nodes.oldest_plan() + self.config.round_s)
        return max(now, min(times, default=math.inf))

    def tick(self, now: float) -> list[Effect]:
        """Abort what has been left hanging by a failed member."""
        effects: list[Effect] = []
        for flight in list(self._hanging.values()):
            if flight.abort_at <= now:
                flight.abort_at = math.inf
                del self._hanging[flight.order.id]
                failed = tuple(sorted(set(flight.order.slots) - flight.pending))
                self._epoch += 1
                for slot in flight.pending | (self.slots.keys() & set(failed)):
                    self.slots[slot].epoch = self._epoch
                effects.append(Abort(self._epoch, tuple(sorted(flight.pending)), failed))
        return effects

    def problem(self, now: float) -> Problem | None:
        """What there is to plan now; None where nothing can be: no GPU, no request or no profile."""
        nodes = self._nodes
        self._dirty, self._planned_version = False, self._version
        if self._again_at <= now:
            nodes.touch_all()
        for flight in list(self._running.values()):
            # The very comparison of `wake_at`: else rounding could wake it for ever.
            if flight.end - self.config.lead_s <= now:
                flight.end = flight.predicted_end(now)
                if flight.end - self.config.lead_s <= now:
                    del self._running[flight.order.id]
                    nodes.touch_slots(flight.order.slots)
        self._dispatch(now)
        self._planning = due = nodes.due(now, self.config.round_s)
        self._claim(now, due)
        if len(due) == len(nodes.slots) or self._again_at <= now:
            self._again_at = math.inf
        problem = self.snapshot(now, due)
        nodes.planned(now, due)
        return problem if problem and problem.requests else None

    def snapshot(self, now: float, nodes: Iterable[str] | None = None) -> Problem | None:
        """The same for somebody who only wants to look, requests or not; on these nodes, or on all."""
        books = self._nodes
        waiting: list[Tracked] = []
        gpus: list[Gpu] = []
        nodes = list(books.slots if nodes is None else nodes)
        for node in nodes:
            gpus += self._gpus(now, node)
            waiting += [t for t in books.members[node].values() if t.next_stage]
        if len(nodes) == len(books.slots):
            waiting += [t for t in books.homeless.values() if t.next_stage]
        if self.profile is None or not gpus:
            return None
        if self.warm_groups:
            sites = self._warmth.sites(self.layout)
            gpus = [replace(gpu, island=f"{gpu.island} {sites.get(gpu.slot)}") for gpu in gpus]
        horizon, never = self._horizon(now)
        # Elsewhere the layout of all is at hand.
        profile = self.profile.limited((layout_of(gpus) if self.warm_groups else self.layout).max_degree)
        return Problem(
            now=now,
            horizon=horizon,
            round_s=self.config.round_s,
            gpus=tuple(gpus if books.apart else sorted(gpus, key=lambda gpu: gpu.slot)),
            requests=tuple([self._outstanding(tracked, never) for tracked in waiting]),
            profile=profile,
            margin_s=self.config.margin_s,
            slack_s=self._demand.slack(profile),
            scale_up=self.config.scale_up,
        )

    def commit(self, now: float, plan: Plan) -> list[Effect]:
        """Give the plan's orders, but those that events since `problem` have overtaken."""
        self.plans += 1
        self._again_at = min(self._again_at, plan.again_at)
        if plan.unplanned:
            self._nodes.touch(*plan.unplanned)
            self._dirty = True
        effects: list[Effect] = []
        for request_id in plan.late:
            tracked = self._active.get(request_id)
            if tracked and tracked.claim is None:
                effects += self._mark_late(now, tracked)
        for assignment in self._kept(now, plan):
            members = [self._active[id] for id in assignment.request_ids if id in self._active]
            if self._may_give(assignment):
                effects += self._assign(now, members, assignment)
            else:
                # Only events can have made it so; anything else is the policy's fault.
                self.rejected += self._version == self._planned_version and assignment in plan.assignments
                if self._version != self._planned_version:
                    self._dirty = True
                    self._nodes.touch(*(tracked.home for tracked in members))
                    self._nodes.touch_slots(assignment.slots)
        return effects

    # Promises.

    def _remember(self, witness: Witness) -> None:
        """Keep the bookings of a witness, request by request."""
        of: dict[str, list[Booking]] = {}
        for booking in witness:
            of.setdefault(booking.request_id, []).append(booking)
        self._witness.update((key, tuple(bookings)) for key, bookings in of.items())

    def _promised(self, problem: Problem) -> Moment:
        """What promises have to know beyond a problem."""
        free_at: dict[int, float] = {}
        ready_at: dict[str, float] = {}
        room: dict[int | str, int] = {}
        witness: list[Booking] = []
        for gpu in problem.gpus:
            queue = self.slots[gpu.slot].queue
            free_at[gpu.slot] = queue[-1].end if queue else problem.now
            room[gpu.slot] = QUEUE_DEPTH - len(queue)
        for request in problem.requests:
            if request.promised:
                flights = self._active[request.id].flights
                ready_at[request.id] = max((flight.end for flight in flights), default=problem.now)
                failing = any(flight.fails(request.id) for flight in flights)
                room[request.id] = 0 if failing else QUEUE_DEPTH - len(flights)
                witness += self._witness.get(request.id, ())
        return Moment(problem, tuple(witness), free_at, ready_at, room)

    def _kept(self, now: float, plan: Plan) -> list[Assignment]:
        """The plan's orders that break no promise, and those that promises need."""
        orders = list(plan.assignments)
        planning = [node for node in self._planning if node in self._nodes.slots]
        for nodes in [[node] for node in planning] if self._nodes.apart else [planning]:
            if not any(t.kept for node in nodes for t in self._planned_on(node)):
                continue
            moment = self.snapshot(now, nodes)
            if moment is None:
                continue
            slots = {gpu.slot for gpu in moment.gpus}
            mine = [a for a in orders if slots.issuperset(a.slots) and self._may_give(a)]
            kept = keep(self._promised(moment), mine)
            self._remember(kept.witness)
            self._again_at = min(self._again_at, max(now, kept.again_at))
            self.refused += kept.refused
            orders = [a for a in orders if a not in mine] + list(kept.assignments)
        return orders

    def _may_give(self, assignment: Assignment) -> bool:
        members = [self._active[id] for id in assignment.request_ids if id in self._active]
        return len(members) == assignment.batch > 0 and self._holds(members, assignment)

    def _planned_on(self, node: str) -> Iterable[Tracked]:
        """What is planned there, or with it where nodes are not planned apart."""
        yield from self._nodes.members[node].values()
        if not self._nodes.apart:
            yield from self._nodes.homeless.values()

    def _claim(self, now: float, nodes: Iterable[str]) -> None:
        """Give those that have waited for too long a claim on GPUs, as if they had been promised a time."""
        if self.config.age_bound_s == math.inf or self.profile is None:
            return
        for group in [[node] for node in nodes] if self._nodes.apart else [list(nodes)]:
            members = {t.id: t for node in group for t in self._planned_on(node) if t.next_stage}
            for tracked in members.values():
                if tracked.claim is not None and tracked.claim < now:
                    tracked.claim = tracked.seen = None
            claims = sum(tracked.claim is not None for tracked in members.values())
            aged = [t for t in members.values() if self._has_aged(now, t)]
            slots = sum(len(self._nodes.slots[node]) for node in group)
            aged.sort(key=lambda t: (t.arrived_at, t.id))
            for tracked in aged[: max(0, max(1, slots // CLAIM_SHARE) - claims)]:
                moment = self.snapshot(now, group)
                request = moment and next((r for r in moment.requests if r.id == tracked.id), None)
                found = moment and request and cheapest(self._promised(moment), request)
                if moment and found:
                    self._remember(found)
                    tracked.claim = max(b.end for b in found if b.request_id == tracked.id) + moment.margin_s
                    tracked.seen = None

    def _has_aged(self, now: float, tracked: Tracked) -> bool:
        hopeless = tracked.late or tracked.deadline == math.inf or tracked.deadline < now
        return now - tracked.arrived_at > self.config.age_bound_s and hopeless and not tracked.kept

    # How it is done.

    def _arrange(self) -> None:
        staying = [slot for slot in self.slots.values() if not slot.leaving]
        self._layout = None
        self.roles = frozenset(role for slot in staying for role in slot.roles)
        all_encode = all(Stage.ENCODING in slot.roles for slot in staying if Stage.DENOISING in slot.roles)
        if all_encode != self._all_encode:
            self._all_encode = all_encode
            for tracked in self._active.values():
                if not tracked.flights and not tracked.holders:
                    self._rewind(tracked)

    def _horizon(self, now: float) -> tuple[float, float]:
        """Until when what frees up can be given orders, and the next moment after that."""
        horizon = now + self.config.lead_s + EPSILON
        return horizon, math.nextafter(horizon, math.inf)

    def _gpus(self, now: float, node: str) -> list[Gpu]:
        """A node's GPUs that take orders, by slot."""
        slots = sorted(self._nodes.slots[node].values(), key=lambda slot: slot.slot)
        flights = {flight.order.id: flight for slot in slots for flight in slot.queue}
        self._predict(now, [flights[order_id] for order_id in sorted(flights)])
        never = self._horizon(now)[1]
        gpus = []
        for slot in slots:
            free_at = slot.queue[-1].end if slot.queue else now
            if not slot.leaving and free_at < math.inf:
                full = len(slot.queue) >= QUEUE_DEPTH
                free_at = max(free_at, never) if full else free_at
                gpus.append(Gpu(slot.slot, free_at, node, slot.roles, slot.island))
        return gpus

    def _dispatch(self, now: float) -> None:
        """Find a node for every request that has none; move some that wait to where there is more room."""
        nodes, usable = self._nodes, self._nodes.open
        if self.profile is None or not usable or not nodes.apart:
            return
        profile = self.profile.limited(self.layout.max_degree)
        never = self._horizon(now)[1]
        for tracked in list(nodes.homeless.values()):
            home = usable[0] if len(usable) == 1 else nodes.of(tracked.holders)
            if home is None and tracked.next_stage:
                home = choose(self._loads(now), profile, self._outstanding(tracked, never), now)
            if home is not None:
                nodes.settle(tracked, home)
        if len(usable) > 1:
            self._rebalance(now, usable)

    def _rebalance(self, now: float, usable: list[str]) -> None:
        """Move a few that wait: to idle nodes, and from where they cannot be on time to where they can."""
        assert self.profile is not None
        nodes, never = self._nodes, self._horizon(now)[1]
        profile = self.profile.limited(self.layout.max_degree)
        idle = [node for node in usable if not nodes.members[node]]
        stale = nodes.due(now, self.config.round_s)
        if idle and all(tracked.flights for tracked in self._active.values()):
            idle = []
        if not idle and not stale:
            return
        loads = self._loads(now)

        def waiting(node: str) -> list[Request]:
            members = nodes.members[node].values()
            found = [t for t in members if t.next_stage and not t.flights and not t.kept]
            return [self._outstanding(tracked, never) for tracked in found]

        moves = 0
        for node in idle[:MOVES]:
            donor = max(loads, key=lambda node: (loads[node].backlog, node), default=node)
            # The first to be served there stays.
            if found := sorted(waiting(donor), key=lambda r: (bool(r.slots), r.deadline, r.id))[1:]:
                self._move(found[0], donor, node)
                moves += 1
        for node in stale:
            load = loads.get(node)
            request = load and not load.fits(now) and crowded_out(load, profile, waiting(node), now)
            if load and request and moves < MOVES:
                others = {other: load for other, load in loads.items() if other != node}
                home = choose(others, profile, request, now, must_fit=True)
                if home is None:
                    return
                self._move(request, node, home)
                moves += 1

    def _move(self, request: Request, donor: str, home: str) -> None:
        tracked = self._active[request.id]
        self._nodes.settle(tracked, home)
        self._nodes.touch(donor, home)

    def _loads(self, now: float) -> dict[str, Load]:
        """The load of every node that takes orders."""
        nodes, never = self._nodes, self._horizon(now)[1]
        assert self.profile is not None
        profile = self.profile.limited(self.layout.max_degree)
        for node in nodes.open:
            if node not in nodes.loads and (gpus := self._gpus(now, node)):
                waiting = [self._outstanding(t, never) for t in nodes.members[node].values() if t.next_stage]
                nodes.loads[node] = Load.of(profile, gpus, waiting, now)
        return nodes.loads

    def _outstanding(self, tracked: Tracked, never: float) -> Request:
        s, flights = tracked.submission, tracked.flights
        steps = left(self.computed(s.steps), tracked.next_step)
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
        ready_at = max((flight.end for flight in flights), default=tracked.arrived_at)
        if len(flights) >= QUEUE_DEPTH or any(flight.fails(s.id) for flight in flights):
            ready_at = max(ready_at, never)
        assert tracked.next_stage is not None
        tracked.seen = Request(
            id=s.id,
            width=s.width,
            height=s.height,
            stage=tracked.next_stage,
            steps=steps,
            ready_at=ready_at,
            arrived_at=tracked.arrived_at,
            deadline=tracked.deadline if tracked.claim is None else tracked.claim,
            weight=s.weight,
            lora=s.lora,
            slots=tracked.holders,
            drop_late=self._drops_late(tracked),
            home=tracked.home,
            alone=tracked.alone,
            promised=tracked.kept,
        )
        return tracked.seen

    def _holds(self, members: list[Tracked], assignment: Assignment) -> bool:
        """Whether the assignment can still become an order; `members` are its requests."""
        slots = [self.slots.get(slot) for slot in assignment.slots]
        return (
            all(self._may_run(tracked, assignment) for tracked in members)
            and (len(members) == 1 or _is_batch(members, assignment))
            and (assignment.stage is not Stage.DENOISING or assignment.steps > 0)
            and len(set(assignment.slots)) == len(slots) > 0
            and all(
                s is not None and not s.leaving and assignment.stage in s.roles and len(s.queue) < QUEUE_DEPTH
                for s in slots
            )
        )

    def _may_run(self, tracked: Tracked, assignment: Assignment) -> bool:
        return (
            tracked.next_stage is assignment.stage
            and len(tracked.flights) < QUEUE_DEPTH
            and not any(flight.fails(tracked.id) for flight in tracked.flights)
            and assignment.steps <= left(self.computed(tracked.submission.steps), tracked.next_step)
        )

    def _assign(self, now: float, members: list[Tracked], assignment: Assignment) -> list[Effect]:
        parts = tuple(
            Part(t.id, t.next_step, t.holders, from_checkpoint=t.next_step > 0 and not t.holders)
            for t in members
        )
        steps = 0
        if assignment.stage is Stage.DENOISING:
            # A batch goes as far as the first of its requests comes.
            steps = min(
                reach(self.computed(t.submission.steps), t.next_step, assignment.steps) for t in members
            )
        order = self._order(assignment.slots, assignment.stage, steps, parts)
        for tracked in members:
            tracked.next_step += steps
            tracked.holders = assignment.slots
            match assignment.stage:
                case Stage.ENCODING:
                    tracked.next_stage = Stage.DENOISING
                case Stage.DENOISING if tracked.next_step == tracked.submission.steps:
                    tracked.next_stage = Stage.DECODING
                case Stage.DECODING:
                    tracked.next_stage = None
        return self._give(now, order, assignment.end - assignment.begin)

    def _order(
        self,
        slots: tuple[int, ...],
        stage: Stage | None = None,
        steps: int = 0,
        parts: tuple[Part, ...] = (),
        measures: bool = False,
    ) -> Order:
        self._order_id += 1
        return Order(self._order_id, slots, self._epoch_of(slots), stage, steps, parts, measures)

    def _epoch_of(self, slots: tuple[int, ...]) -> int:
        # A group keeps its name, and so its communicators, until one of its own members is lost.
        return max(self.slots[slot].epoch for slot in slots)

    def _give(self, now: float, order: Order, length: float) -> list[Effect]:
        flight = Flight(order, length, pending=set(order.slots))
        self._flights[order.id] = flight
        for slot in order.slots:
            self.slots[slot].queue.append(flight)
        for tracked in self._members(flight):
            tracked.flights.append(flight)
        self._may_begin[order.id] = flight
        return [Give(order), *self._begin(now)]

    def _members(self, flight: Flight) -> list[Tracked]:
        """The flight's requests that have not ended."""
        return [self._active[id] for id in flight.order.request_ids if id in self._active]

    def _begin(self, now: float) -> list[Effect]:
        """Mark the orders whose turn has come."""
        effects: list[Effect] = []
        for order_id in sorted(self._may_begin):
            flight = self._may_begin.pop(order_id)
            order = flight.order
            if (
                order_id not in self._flights
                or flight.begun
                or flight.reports
                or any(self.slots[slot].queue[0] is not flight for slot in flight.pending)
                or any(tracked.flights[0] is not flight for tracked in self._members(flight))
            ):
                continue
            flight.begun_at = flight.marked_at = now
            self._running[order_id] = flight
            flight.end = flight.predicted_end(now)
            for part in order.parts:
                if tracked := self._active.get(part.request_id):
                    assert order.stage
                    tracked.stage = order.stage
                    tracked.spans.append(_span(order, part, now))
                    effects.append(Changed(tracked.id))
        return effects

    def _predict(self, now: float, flights: Iterable[Flight]) -> None:
        """Predict the ends of all flights of a node, given in the order in which they run."""
        for flight in flights:
            if flight.begun:
                flight.end = flight.predicted_end(now)
                continue
            begin = now
            for ahead in self._ahead_of(flight):
                begin = max(begin, ahead.end)
            flight.end = begin + flight.length

    def _ahead_of(self, flight: Flight) -> Iterator[Flight]:
        """Flights that this one waits for, directly."""
        for slot in flight.pending:
            for other in self.slots[slot].queue:
                if other is flight:
                    break
                yield other
        for tracked in self._members(flight):
            yield from tracked.flights[: tracked.flights.index(flight)]

    def _note(self, flight: Flight, report: Report) -> None:
        """A member has reported."""
        flight.pending.discard(report.slot)
        flight.reports.append(report)
        self._may_begin[flight.order.id] = flight
        slot = self.slots.get(report.slot)
        if slot is None:
            return
        slot.queue.remove(flight)
        slot.busy_seconds += report.seconds
        if slot.queue:
            self._may_begin[slot.queue[0].order.id] = slot.queue[0]
        for tracked in self._members(flight):
            if tracked.id in report.held:
                tracked.held[report.slot] = report.held[tracked.id]

    def _settle(self, now: float, flight: Flight) -> list[Effect]:
        """Go on after a report: wait for the other members, or see what has become of the order."""
        if flight.pending and flight.failing:
            flight.abort_at = min(flight.abort_at, now + self.config.grace_s)
            self._hanging[flight.order.id] = flight
        effects: list[Effect] = []
        reported = [flight]
        while reported:
            flight = reported.pop()
            if flight.pending or flight.order.id not in self._flights:
                continue
            if not flight.failing and any(t.flights[0] is not flight for t in self._members(flight)):
                # Reports of a predecessor are still on their way from other members.
                continue
            effects += self._resolve(now, flight)
            members = (self.requests.get(id) for id in flight.order.request_ids)
            reported += [tracked.flights[0] for tracked in members if tracked and tracked.flights]
        return effects

    def _resolve(self, now: float, flight: Flight) -> list[Effect]:
        """All members have reported."""
        order = flight.order
        for books in (self._flights, self._running, self._hanging):
            books.pop(order.id, None)
        if order.stage is None and all(report.outcome is Outcome.OK for report in flight.reports):
            self._warmth.note(order.slots, order.epoch)
        effects: list[Effect] = []
        for part, seconds in zip(order.parts, _shares(flight), strict=True):
            tracked = self.requests[part.request_id]
            tracked.flights.remove(flight)
            self._may_begin.update((ahead.order.id, ahead) for ahead in tracked.flights[:1])
            tracked.gpu_seconds += seconds
            self._close_span(now, tracked, flight, part)
            if tracked.stage.ended:
                effects += self._release(tracked, order.slots)
            else:
                effects += self._resolve_part(now, tracked, flight, part)
        return effects

    def _resolve_part(self, now: float, tracked: Tracked, flight: Flight, part: Part) -> list[Effect]:
        """What has become of the order for one of its requests."""
        order = flight.order
        bad = [report for report in flight.reports if report.outcome is not Outcome.OK]
        if bad:
            return self._failed(now, tracked, flight, part, bad)
        if order.stage is Stage.DECODING:
            return self._end(now, tracked, Stage.DONE)
        reached = min(report.held.get(tracked.id, -1) for report in flight.reports)
        if order.stage is Stage.DENOISING and reached >= part.first_step:
            tracked.steps_done = reached
        effects: list[Effect] = []
        staying = any(s in self.slots and not self.slots[s].leaving for s in order.slots)
        if staying and reached >= part.first_step:
            # Else it was stopped before they had the state, or the furthest state is about to go with them.
            effects += self._release(tracked, set(tracked.held) - set(order.slots))
        if len(order.parts) == 1:
            tracked.alone = False
        short = order.stage is Stage.DENOISING and reached < part.first_step + order.steps
        if short or tracked.id in flight.withdrawn:
            effects += self._withdraw(tracked)
        return [*effects, *self._changed(now, tracked)]

    def _close_span(self, now: float, tracked: Tracked, flight: Flight, part: Part) -> None:
        order = flight.order
        seconds = max(report.seconds for report in flight.reports)
        if not flight.begun:
            if not seconds:
                return
            # Over before its predecessor was known to be.
            tracked.spans.append(_span(order, part, now - seconds))
        for span in reversed(tracked.spans):
            if span.slots == order.slots and math.isnan(span.end):
                span.end = now
                reached = max(report.held.get(tracked.id, 0) for report in flight.reports)
                span.steps = max(0, min(span.steps, reached - span.first_step))
                return

    def _failed(
        self, now: float, tracked: Tracked, flight: Flight, part: Part, bad: list[Report]
    ) -> list[Effect]:
        worst = next((r for r in bad if r.outcome is Outcome.ERROR), bad[0])
        # Where its predecessor is still out, it could not begin for want of the state.
        behind = any(ahead.order.id < flight.order.id for ahead in tracked.flights)
        tried = not behind and any(report.outcome is not Outcome.RETURNED for report in bad)
        if tried and tracked.id not in flight.withdrawn:
            if len(flight.order.parts) > 1:
                # Nobody knows yet whose fault it was.
                tracked.alone = True
            else:
                tracked.failures += 1
        if tracked.failures >= self.config.attempts:
            tracked.error = worst.error or f"failed {tracked.failures} times"
            return self._end(now, tracked, Stage.FAILED)
        ahead = tracked.flights[-1] if tracked.flights else None
        if ahead is None or ahead.order.id > flight.order.id or ahead.fails(tracked.id):
            return self._withdraw(tracked) + self._changed(now, tracked)
        # What runs before it is sound: only this one is to be planned anew.
        assert flight.order.stage
        tracked.next_step, tracked.next_stage = part.first_step, flight.order.stage
        tracked.holders = ahead.order.slots
        return self._changed(now, tracked)

    def _withdraw(self, tracked: Tracked) -> list[Effect]:
        """Take back what is queued ahead; begin again from what is held once all has been reported."""
        effects: list[Effect] = []
        for flight in tracked.flights:
            flight.withdrawn.add(tracked.id)
            effects.append(Truncate(flight.order.id, flight.order.leader, tracked.id))
        if not tracked.flights:
            self._rewind(tracked)
        return effects

    def _rewind(self, tracked: Tracked) -> None:
        """Plan anew from the furthest step that an executor holds, or else from the checkpoint."""
        furthest = max(tracked.held.values(), default=0)
        if tracked.held and furthest >= tracked.checkpoint:
            tracked.steps_done = furthest
            tracked.holders = tuple(sorted(s for s, step in tracked.held.items() if step == furthest))
        else:
            tracked.steps_done = tracked.checkpoint
            tracked.holders = ()
        tracked.next_step = tracked.steps_done
        if tracked.steps_done == tracked.submission.steps:
            tracked.next_stage = Stage.DECODING
        elif not tracked.holders and (tracked.steps_done == 0 or not self._all_encode):
            tracked.next_stage = Stage.ENCODING
        else:
            tracked.next_stage = Stage.DENOISING

    def _end(self, now: float, tracked: Tracked, stage: Stage) -> list[Effect]:
        tracked.stage, tracked.finished_at, tracked.next_stage = stage, now, None
        if stage is Stage.DONE:
            tracked.late = now > tracked.deadline
        del self._active[tracked.id]
        self._nodes.remove(tracked)
        self._witness.pop(tracked.id, None)
        self._may_begin.update((flight.order.id, flight) for flight in tracked.flights)
        effects: list[Effect] = [Truncate(f.order.id, f.order.leader, tracked.id) for f in tracked.flights]
        busy = {slot for flight in tracked.flights for slot in flight.pending}
        effects += self._release(tracked, set(tracked.held) - busy)
        return [*effects, *self._changed(now, tracked)]

    def _release(self, tracked: Tracked, slots: Iterable[int]) -> list[Effect]:
        """Release the state on `slots`, but where an order that is still out needs it."""
        needed = {slot for flight in tracked.flights for slot in flight.pending}
        if not tracked.stage.ended:
            for flight in tracked.flights:
                needed.update(flight.order.slots)
                needed.update(*(p.holders for p in flight.order.parts if p.request_id == tracked.id))
        freed = tuple(sorted(slot for slot in set(slots) - needed if slot in self.slots))
        for slot in freed:
            tracked.held.pop(slot, None)
        return [Release(tracked.id, freed)] if freed else []

    def _mark_late(self, now: float, tracked: Tracked) -> list[Effect]:
        if self._drops_late(tracked):
            tracked.late, tracked.error = True, "the deadline cannot be met any more"
            return self._end(now, tracked, Stage.DROPPED)
        if tracked.late:
            return []
        tracked.late = True
        return [Changed(tracked.id)]

    def _drops_late(self, tracked: Tracked) -> bool:
        wish = tracked.submission.drop_late
        return not tracked.promised and (self.config.drop_late if wish is None else wish)

    def _changed(self, now: float, tracked: Tracked) -> list[Effect]:
        return [Changed(tracked.id), *self._touch(now)]

    def _touch(self, now: float) -> list[Effect]:
        """Something has happened: plan anew."""
        self._dirty = True
        self._version += 1
        return self._begin(now)


def _is_batch(members: list[Tracked], assignment: Assignment) -> bool:
    """Whether the steps of these can run together."""
    keys = {tracked.submission.batch_key for tracked in members}
    return (
        assignment.stage is Stage.DENOISING
        and len(keys) == 1
        and len(set(assignment.request_ids)) == len(members)
        and not any(tracked.alone for tracked in members)
    )


def _span(order: Order, part: Part, begin: float) -> Span:
    assert order.stage
    return Span(order.stage, order.slots, part.first_step, order.steps, begin, batch=len(order.parts))


def _shares(flight: Flight) -> list[float]:
    """GPU-seconds of each part of an order that has ended: by its steps, alike where none has ended."""
    order = flight.order
    total = max(report.seconds for report in flight.reports) * len(order.slots)
    ran = [
        max(0, *(report.held.get(part.request_id, 0) - part.first_step for report in flight.reports))
        for part in order.parts
    ]
    if not sum(ran):
        ran = [1] * len(order.parts)
    return [total * steps / sum(ran) for steps in ran]
