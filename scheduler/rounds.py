"""The core: events in, effects out. No clock, no network, no threads.

The service feeds it real events and the simulator virtual ones. Each event method takes the time and
returns effects. Planning is three calls, so that a policy can run elsewhere and take its time:
`problem` (a snapshot), the policy, `commit` (what of the plan still holds becomes orders).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from scheduler.config import Config
from scheduler.flights import Flights
from scheduler.homes import Homes
from scheduler.nodes import Nodes
from scheduler.orders import Abort, Changed, Effect, Give, Order, Outcome, Part, Release, Report, Truncate
from scheduler.placement import Layout
from scheduler.pledges import Offer, Pledges
from scheduler.problem import EVERY_ROLE, ROLES, Assignment, Plan, Problem, Request, Stage
from scheduler.profile import Profile
from scheduler.skipping import Computed, reach
from scheduler.tracking import ONCE, Flight, Slot, Submission, Tracked
from scheduler.view import View
from scheduler.warmth import WARM_UP_S


class Rounds:
    """Requests, executors and what runs where."""

    def __init__(self, config: Config, profile: Profile | None = None) -> None:
        self.config = config
        self.requests: dict[str, Tracked] = {}
        self.slots: dict[int, Slot] = {}
        self.plans = 0
        self.rejected = 0  # assignments that no policy should have made
        self._active: dict[str, Tracked] = {}
        self._nodes = Nodes()
        self._view = View(config, self.slots, self._active, self._nodes)
        self._view.profile = profile
        self._homes = Homes(self._view)
        self._pledges = Pledges(self._view)
        self._flights = Flights(self._view, self.requests)
        self._order_id = 0
        self._epoch = 0
        self.roles: frozenset[Stage] = frozenset()
        self._all_encode = True  # who denoises
        self._planning: list[str] = []  # nodes
        self._dirty = False
        self._version = 0
        self._planned_version = 0
        self._again_at = math.inf

    # What planning goes by.

    @property
    def profile(self) -> Profile | None:
        """How long things take; without it nothing is planned."""
        return self._view.profile

    @profile.setter
    def profile(self, profile: Profile) -> None:
        self._view.profile = profile

    @property
    def profiles(self) -> Mapping[str, Profile]:
        """How long things take on nodes where they take longer or shorter."""
        return self._view.profiles

    @profiles.setter
    def profiles(self, profiles: Mapping[str, Profile]) -> None:
        for node in self._nodes.slots:
            if profiles.get(node) is not self._view.profiles.get(node):
                self._nodes.loads.pop(node, None)
        self._view.profiles = profiles

    @property
    def computed(self) -> Computed:
        """The steps that cost something, of so many; all of them where there is no step cache."""
        return self._view.computed

    @computed.setter
    def computed(self, computed: Computed) -> None:
        self._view.computed = computed

    @property
    def warm_groups(self) -> bool:
        """Whether groups of several are only used once they are warm; costly ones (NCCL) should be."""
        return self._view.warm_groups

    @warm_groups.setter
    def warm_groups(self, warm_groups: bool) -> None:
        self._view.warm_groups = warm_groups

    @property
    def layout(self) -> Layout:
        """The aligned blocks of the slots that take orders."""
        return self._view.layout

    def work(self, steps: int) -> int:
        """The steps that planning counts for a request of so many."""
        return self._view.work(steps)

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
        self._view.demand.note(now, submission, self.work(submission.steps))
        self.requests[tracked.id] = self._active[tracked.id] = tracked
        self._nodes.add(tracked)
        tracked.promised = promised
        self._rewind(tracked)
        if offer and offer.witness is not None:
            tracked.promised = True
            self._pledges.remember(offer.witness)
            if offer.home is not None:
                self._nodes.settle(tracked, offer.home)
        return self._changed(now, tracked)

    def offer(self, now: float, submission: Submission, arrived_at: float | None = None) -> Offer:
        """Whether the deadline of a request could be promised beside those that have been."""
        request = replace(self.arriving(now, submission, arrived_at), promised=True)
        return self._pledges.offer(self.best_parts(now, request), request)

    def arriving(self, now: float, submission: Submission, arrived_at: float | None = None) -> Request:
        """A submission as planning would see it if it were accepted now."""
        s = submission
        tracked = Tracked.new(s, now if arrived_at is None else arrived_at)
        steps, came, due = self.work(s.steps), tracked.arrived_at, tracked.deadline
        return Request(s.id, s.width, s.height, Stage.ENCODING, steps, now, came, due, s.weight, lora=s.lora)

    def best_parts(self, now: float, request: Request) -> list[tuple[str | None, Problem]]:
        """What is planned together and would take the request: the best few nodes, or all as one."""
        return self._homes.best_parts(now, request)

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

    @property
    def lacking(self) -> tuple[Stage, ...]:
        """Stages that none of the executors can run: what is to be done there waits."""
        return tuple(role for role in ROLES if self.roles and role not in self.roles)

    @property
    def measuring(self) -> bool:
        """Whether step times are being measured."""
        return any(flight.order.measures for flight in self._flights)

    @property
    def preparing(self) -> bool:
        """Whether step times are being measured or groups are being warmed."""
        return any(flight.order.stage is None for flight in self._flights)

    def order(self, order_id: int) -> Order | None:
        """An order that is out, or None."""
        flight = self._flights.get(order_id)
        return flight.order if flight else None

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
            self._flights.note(flight, report)
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
        self._flights.note(flight, report)
        self._nodes.touch_slots(flight.order.slots)
        return self._settle(now, flight) + self._touch(now)

    def measure(self, now: float, slots: tuple[int, ...]) -> list[Effect]:
        """Give an order to measure step times, which the service fills in."""
        return self._give(now, self._order(slots, measures=True), math.inf) + self._touch(now)

    def warm_up(self, now: float) -> list[Effect]:
        """Order groups that are cold to be used once, where `warm_groups` says so."""
        if not self.warm_groups:
            return []
        under_way = {flight.order.slots for flight in self._flights if flight.order.stage is None}
        effects: list[Effect] = []
        for slots in self._view.warmth.cold(self.layout, under_way):
            effects += self._give(now, self._order(slots), WARM_UP_S)
        return effects + self._touch(now) if effects else []

    # Planning.

    def wake_at(self, now: float) -> float:
        """When to plan next, or to call `tick`; infinity: after the next event."""
        if self._dirty:
            return now
        wake = self._flights.next_abort()
        if any(t.next_stage for t in self._active.values()):
            ahead = self._flights.next_end() - self.config.lead_s
            wake = min(wake, self._again_at, ahead, self._nodes.oldest_plan() + self.config.round_s)
        return max(now, wake)

    def tick(self, now: float) -> list[Effect]:
        """Abort what has been left hanging by a failed member."""
        effects: list[Effect] = []
        for flight in self._flights.overdue(now):
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
        for flight in self._flights.ending(now, self.config.lead_s):
            nodes.touch_slots(flight.order.slots)
        self._homes.dispatch(now)
        self._planning = due = nodes.due(now, self.config.round_s)
        self._pledges.claim(now, due)
        if len(due) == len(nodes.slots) or self._again_at <= now:
            self._again_at = math.inf
        problem = self.snapshot(now, due)
        nodes.planned(now, due)
        return problem if problem and problem.requests else None

    def snapshot(self, now: float, nodes: Iterable[str] | None = None) -> Problem | None:
        """The same for somebody who only wants to look, requests or not; on these nodes, or on all."""
        return self._view.snapshot(now, nodes)

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
            # How far an order gets that is being ended is known when it has been reported.
            if tracked and tracked.claim is None and not any(f.ends_early for f in tracked.flights):
                effects += self._mark_late(now, tracked)
        for request_id in plan.interrupted:
            effects += self._interrupt(now, request_id)
        orders, again_at = self._pledges.keep(now, self._planning, plan.assignments)
        self._again_at = min(self._again_at, again_at)
        for assignment in orders:
            members = [self._active[id] for id in assignment.request_ids if id in self._active]
            if self._view.may_give(assignment):
                effects += self._assign(now, members, assignment)
            else:
                # Only events can have made it so; anything else is the policy's fault.
                self.rejected += self._version == self._planned_version and assignment in plan.assignments
                if self._version != self._planned_version:
                    self._dirty = True
                    self._nodes.touch(*(tracked.home for tracked in members))
                    self._nodes.touch_slots(assignment.slots)
        return effects

    # How it is done.

    def _arrange(self) -> None:
        staying = [slot for slot in self.slots.values() if not slot.leaving]
        self._view.rearranged()
        self.roles = frozenset(role for slot in staying for role in slot.roles)
        all_encode = all(Stage.ENCODING in slot.roles for slot in staying if Stage.DENOISING in slot.roles)
        if all_encode != self._all_encode:
            self._all_encode = all_encode
            for tracked in self._active.values():
                if not tracked.flights and not tracked.holders:
                    self._rewind(tracked)

    def _assign(self, now: float, members: list[Tracked], assignment: Assignment) -> list[Effect]:
        parts = tuple(
            Part(t.id, t.next_step, t.holders, from_checkpoint=t.next_step > 0 and not t.holders)
            for t in members
        )
        steps, costly = 0, ONCE
        if assignment.stage is Stage.DENOISING:
            # A batch takes no longer than planned, whoever of its requests a step is computed for.
            found = self._view.costly(members)
            steps, costly = reach(found, 0, assignment.steps), found[: assignment.steps]
        yields = assignment.stage is Stage.DENOISING and all(tracked.yields for tracked in members)
        order = self._order(assignment.slots, assignment.stage, steps, parts, yields=yields)
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
        return self._give(now, order, assignment.end - assignment.begin, costly)

    def _order(
        self,
        slots: tuple[int, ...],
        stage: Stage | None = None,
        steps: int = 0,
        parts: tuple[Part, ...] = (),
        measures: bool = False,
        yields: bool = False,
    ) -> Order:
        self._order_id += 1
        epoch = self._view.epoch_of(slots)
        return Order(self._order_id, slots, epoch, stage, steps, parts, measures, yields)

    def _give(self, now: float, order: Order, length: float, costly: Sequence[int] = ONCE) -> list[Effect]:
        self._flights.add(order, length, costly)
        return [Give(order), *self._begin(now)]

    def _begin(self, now: float) -> list[Effect]:
        """Tell of the orders whose turn has come."""
        effects: list[Effect] = []
        for flight in self._flights.begin(now):
            order = flight.order
            for part in order.parts:
                if tracked := self._active.get(part.request_id):
                    assert order.stage
                    tracked.stage = order.stage
                    tracked.begin_span(order, part, now)
                    effects.append(Changed(tracked.id))
        return effects

    def _settle(self, now: float, flight: Flight) -> list[Effect]:
        """Go on after a report: see what has become of the orders that are over with it."""
        effects: list[Effect] = []
        for over in self._flights.settle(now, flight, self.config.grace_s):
            effects += self._resolve(now, over)
        return effects

    def _resolve(self, now: float, flight: Flight) -> list[Effect]:
        """All members have reported."""
        order = flight.order
        if order.stage is None and all(report.outcome is Outcome.OK for report in flight.reports):
            self._view.warmth.note(order.slots, order.epoch)
        effects: list[Effect] = []
        for part, seconds in zip(order.parts, flight.shares(), strict=True):
            tracked = self.requests[part.request_id]
            self._flights.close(flight, tracked)
            tracked.gpu_seconds += seconds
            tracked.end_span(now, flight, part)
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
            tracked.in_vain = reached == part.first_step
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

    def _interrupt(self, now: float, request_id: str) -> list[Effect]:
        """End what runs of a request at its next step; how it goes on is planned then."""
        flight = self._view.interruptible(request_id)
        if flight is None:
            return []  # it has been overtaken
        tracked = self._active[request_id]
        flight.last_step, stops_at = self._view.stops(now, flight)
        if flight.order.yields:
            flight.left_at = stops_at
        flight.end = stops_at
        for behind in tracked.flights[1:]:
            behind.last_step = 0
            behind.end = flight.end
        return self._withdraw(tracked)

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
        tracked.rewind(self._all_encode)

    def _end(self, now: float, tracked: Tracked, stage: Stage) -> list[Effect]:
        tracked.stage, tracked.finished_at, tracked.next_stage = stage, now, None
        if stage is Stage.DONE:
            tracked.late = now > tracked.deadline
        del self._active[tracked.id]
        self._nodes.remove(tracked)
        self._pledges.forget(tracked.id)
        self._flights.look_at(tracked.flights)
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
        if tracked.drops_late(self.config.drop_late):
            tracked.late, tracked.error = True, "the deadline cannot be met any more"
            return self._end(now, tracked, Stage.DROPPED)
        if tracked.late:
            return []
        tracked.late = True
        return [Changed(tracked.id)]

    def _changed(self, now: float, tracked: Tracked) -> list[Effect]:
        return [Changed(tracked.id), *self._touch(now)]

    def _touch(self, now: float) -> list[Effect]:
        """Something has happened: plan anew."""
        self._dirty = True
        self._version += 1
        return self._begin(now)
