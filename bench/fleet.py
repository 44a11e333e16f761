"""Virtual executors: each runs its orders in turn, a group when all its members are free.

They keep what real ones keep, which is what makes faults worth simulating: who holds which request
at which step. An order begins only where its state can be had, so a core that loses track of a
request leaves it stuck for all to see.
"""

import math
import random
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from bench.clock import Clock
from bench.conditions import Conditions, Fault
from scheduler.orders import Abort, Effect, Give, Order, Outcome, Part, Release, Report, Truncate
from scheduler.pace import Paces
from scheduler.problem import EVERY_ROLE, Stage
from scheduler.profile import Profile
from scheduler.rounds import Rounds
from scheduler.yielding import leaving_s


@dataclass(slots=True, eq=False)
class Job:
    """An order from its giving to the last member's report.

    `going` are the parts that it has not been stopped for, `stepping` those of the running step.
    """

    order: Order
    width: int
    height: int
    pending: set[int]
    going: list[Part]
    stepping: list[Part] = field(default_factory=list)
    steps_run: int = 0
    begun_at: float = math.nan
    step_s: float = 0.0  # the running step's, or the encoding's or decoding's
    stalled: bool = False  # a member is gone, so that its step never ends
    errs_on: int | None = None

    @property
    def begun(self) -> bool:
        """Whether its members have met and have its state."""
        return not math.isnan(self.begun_at)


@dataclass(slots=True)
class Tally:
    """What the executors did. `steps_run` are by request, `batches` is how many steps ran, alone or shared;
    times in GPU-seconds."""

    switches: int = 0
    batches: int = 0
    busy_seconds: float = 0.0
    losses: int = 0
    steps_lost: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    steps_run: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))


class Fleet:
    """Executors in virtual time; `send` takes an event of the core, to be applied at the current time.

    A slot that is not in `roles` can run every stage.
    """

    def __init__(
        self,
        profile: Profile,
        conditions: Conditions,
        clock: Clock,
        core: Rounds,
        send: Callable[[list[Effect]], None],
        node_size: int,
        roles: Mapping[int, frozenset[Stage]] | None = None,
        island_size: int | None = None,
    ) -> None:
        self.tally = Tally()
        knows = conditions.node_paces and conditions.knows_paces
        self._paces = Paces(core.profile) if core.profile and knows else None
        if self._paces:
            self._paces.joins("of the profile", profile.entries)
        self._island_size = island_size or node_size
        self._node_size = node_size
        self._roles = roles or {}
        self._profile = profile
        self._conditions = conditions
        self._clock = clock
        self._core = core
        self._send = send
        self._random = random.Random(f"fleet {conditions.seed}")
        self._queues: dict[int, deque[Job]] = {}
        self._leaving: dict[int, Fault] = {}
        self._jobs: dict[int, Job] = {}
        self._blocked: dict[int, Job] = {}
        self._held: dict[str, dict[int, int]] = defaultdict(dict)
        self._checkpoints: dict[str, int] = {}
        self._group: dict[int, tuple[int, ...]] = {}
        self._lives: dict[int, int] = defaultdict(int)
        self._last_down: dict[int, float] = {}
        self._last_up: dict[int, float] = {}

    # What the core says.

    def obey(self, effect: Effect) -> None:
        """Carry an effect to the executors it is meant for."""
        match effect:
            case Give(order):
                self._give(order)
            case Truncate(order_id, leader, request_id):
                self._down(leader, lambda: self._truncate(order_id, request_id))
            case Abort(_, slots, _):
                for slot in slots:
                    self._down(slot, partial(self._abort, slot, effect))
            case Release(request_id, slots):
                for slot in slots:
                    self._down(slot, partial(self._release, slot, request_id))

    def _give(self, order: Order) -> None:
        if order.stage and not self._can(order, order.stage):
            raise RuntimeError(f"{order} is given to executors without that role")
        for part in order.parts:
            if part.from_checkpoint and self._checkpoints.get(part.request_id) != part.first_step:
                raise RuntimeError(f"{order} is to go on from a checkpoint that is not there")
        submissions = [self._core.requests[request_id].submission for request_id in order.request_ids]
        ((width, height),) = {(s.width, s.height) for s in submissions}
        job = Job(order, width, height, set(order.slots), list(order.parts))
        self._jobs[order.id] = job
        for slot in order.slots:
            self._down(slot, partial(self._receive, slot, job))

    def _receive(self, slot: int, job: Job) -> None:
        if slot in self._leaving:
            self._report(slot, job, Outcome.RETURNED)
        elif slot in self._queues:
            self._queues[slot].append(job)
            self._try(job)

    def _truncate(self, order_id: int, request_id: str) -> None:
        if job := self._jobs.get(order_id):
            job.going = [part for part in job.going if part.request_id != request_id]
            if job.begun and job.order.yields and not job.going:
                left_at = self._clock.now + leaving_s(job.step_s, self._profile.layers)
                self._clock.at(left_at, partial(self._leave, job, job.steps_run))
            self._try(job)

    def _leave(self, job: Job, steps_run: int) -> None:
        """Its members leave the step that is running, unless it has ended."""
        if job.order.id in self._jobs and not job.stalled and job.steps_run == steps_run:
            job.stalled = True  # the step never ends
            self._finish(job, Outcome.OK)

    def _abort(self, slot: int, abort: Abort) -> None:
        for job in list(self._queues.get(slot, ())):
            if job.order.epoch < abort.epoch and not set(abort.lost).isdisjoint(job.order.slots):
                job.stalled = True
                self._report(slot, job, Outcome.ABORTED if job.begun else Outcome.RETURNED)
        self._look(slot)

    def _release(self, slot: int, request_id: str) -> None:
        self._held[request_id].pop(slot, None)

    # Executors come and go.

    def join(self, slot: int) -> None:
        """A new executor takes the slot."""
        self._queues[slot] = deque()
        self._lives[slot] += 1
        roles = self._roles.get(slot, EVERY_ROLE)
        node = self._node(slot)
        if self._paces:
            # What it has measured before it registers.
            measured = [replace(e, seconds=e.seconds * self._pace(slot)) for e in self._profile.entries]
            self._follow(self._paces.joins(node, measured))
        island = f"island{slot // self._island_size}"
        self._up(slot, lambda: self._core.executor_joined(self._clock.now, slot, node, roles, island))

    def fail(self, fault: Fault) -> None:
        """An executor goes, if there is one in that slot that is not about to."""
        slot, now = fault.slot, self._clock.now
        if slot not in self._queues or slot in self._leaving:
            return
        if fault.clean:
            self._leaving[slot] = fault
            self._up(slot, lambda: self._core.executor_leaving(self._clock.now, slot))
            for job in list(self._queues[slot]):
                if not job.begun:
                    self._report(slot, job, Outcome.RETURNED)
            self._part(slot)
            return
        self.tally.losses += 1
        for job in self._queues[slot]:
            job.stalled = True
            job.pending.discard(slot)
            self._blocked.pop(job.order.id, None)
            if job.begun:
                self.tally.busy_seconds += now - job.begun_at
            if not job.pending:
                del self._jobs[job.order.id]
        self._gone(slot, fault, now + fault.detection_s)

    def _part(self, slot: int) -> None:
        """Let one that leaves go when it has nothing left to do."""
        if slot in self._leaving and not self._queues[slot]:
            self._gone(slot, self._leaving.pop(slot), self._clock.now)

    def _gone(self, slot: int, fault: Fault, missed_at: float) -> None:
        del self._queues[slot]
        self._group.pop(slot, None)
        for request_id, held in self._held.items():
            if slot in held:
                furthest = max(held.values())
                del held[slot]
                safe = max([self._checkpoints.get(request_id, 0), *held.values()])
                self.tally.steps_lost[request_id] += max(0, furthest - safe)
        # Behind what it had still said; its successor registers later.
        missed_at = self._last_up[slot] = max(missed_at, self._last_up.get(slot, 0.0))
        self._clock.at(missed_at, lambda: self._send(self._core.executor_lost(missed_at, slot)))
        self._clock.at(missed_at + fault.repair_s, lambda: self.join(slot))
        self._unblock()

    # Running.

    def _look(self, slot: int) -> None:
        """Something may have become the head of this queue."""
        queue = self._queues.get(slot)
        if queue:
            self._try(queue[0])

    def _try(self, job: Job) -> None:
        """Begin a job if its members have all come to it and its state can be had."""
        order = job.order
        if job.begun or job.stalled or len(job.pending) < len(order.slots):
            return
        for slot in order.slots:
            queue = self._queues.get(slot)
            if not queue or queue[0] is not job:
                return
        missing = [part for part in job.going if not self._has_state(order, part)]
        if not job.going:
            self._finish(job, Outcome.RETURNED)
        elif any(self._may_come(order, part) for part in missing):
            self._blocked[order.id] = job
        elif all(self._can_begin(order, part) for part in missing):
            self._blocked.pop(order.id, None)
            # The beginning can always be made anew.
            self._begin(job, len(missing) * self._profile.encode() * self._pace(order.leader))
        else:
            self._finish(job, Outcome.ABORTED)

    def _can(self, order: Order, stage: Stage) -> bool:
        """Whether all of an order's executors can run the stage."""
        return all(stage in self._roles.get(slot, EVERY_ROLE) for slot in order.slots)

    def _can_begin(self, order: Order, part: Part) -> bool:
        """Whether the part's state can be made from nothing."""
        return order.stage is Stage.DENOISING and part.first_step == 0 and self._can(order, Stage.ENCODING)

    def _has_state(self, order: Order, part: Part) -> bool:
        if order.stage is Stage.ENCODING:
            return True
        if part.from_checkpoint:
            # Steps need the condition, too.
            return order.stage is Stage.DECODING or self._can(order, Stage.ENCODING)
        held = self._held[part.request_id]
        return any(held.get(slot) == part.first_step for slot in (*part.holders, *order.slots))

    def _may_come(self, order: Order, part: Part) -> bool:
        """Whether one of the holders is still at work on the state."""
        return any(
            part.request_id in job.order.request_ids
            and job.order.id < order.id
            and any(slot in self._queues and slot in job.pending for slot in part.holders)
            for job in self._jobs.values()
        )

    def _begin(self, job: Job, lag: float = 0.0) -> None:
        order = job.order
        job.begun_at = self._clock.now
        if any(self._group.get(slot) != order.slots for slot in order.slots):
            if len(order.slots) > 1:
                lag += self._conditions.switch_s or self._profile.switch
            self.tally.switches += any(slot in self._group for slot in order.slots)
            self._group.update(dict.fromkeys(order.slots, order.slots))
        if self._conditions.error_rate and self._random.random() < self._conditions.error_rate:
            job.errs_on = self._random.choice(order.slots)
        if order.stage is Stage.DENOISING and not self._conditions.poisoned.isdisjoint(order.request_ids):
            job.errs_on = order.leader
        job.stepping = list(job.going)
        if order.stage is not Stage.ENCODING:
            self._hold(job)
        self._run(job, lag)

    def _run(self, job: Job, lag: float = 0.0) -> None:
        job.step_s = self._seconds(job)
        self._clock.at(self._clock.now + lag + job.step_s, lambda: self._advance(job))

    def _hold(self, job: Job) -> None:
        for part in job.stepping:
            held = dict.fromkeys(job.order.slots, part.first_step + job.steps_run)
            self._held[part.request_id].update(held)

    def _seconds(self, job: Job) -> float:
        """How long the next step, or the encoding or decoding, takes."""
        match job.order.stage:
            case Stage.ENCODING:
                seconds = self._profile.encode()
            case Stage.DECODING:
                seconds = self._profile.decode(job.width, job.height)
            case _:
                degree, batch = len(job.order.slots), sum(self._computes(job, part) for part in job.stepping)
                seconds = self._profile.step(job.width, job.height, degree, batch) if batch else 0.0
        seconds *= self._pace(job.order.leader)
        cv = self._conditions.step_cv
        return seconds * max(0.1, self._random.gauss(1.0, cv)) if cv else seconds

    def _computes(self, job: Job, part: Part) -> bool:
        steps = self._core.requests[part.request_id].submission.steps
        return part.first_step + job.steps_run in self._core.computed(steps)

    def _advance(self, job: Job) -> None:
        """A step, an encoding or a decoding has ended."""
        if job.stalled:
            return
        order = job.order
        if job.errs_on is not None:
            job.stalled = True
            for slot in order.slots:
                self._report(slot, job, Outcome.ERROR if slot == job.errs_on else Outcome.ABORTED)
            for slot in order.slots:
                self._look(slot)
            return
        self._learn(job)
        if order.stage is Stage.DENOISING:
            self.tally.batches += 1
            for part in job.stepping:
                self.tally.steps_run[part.request_id].append(part.first_step + job.steps_run)
            job.steps_run += 1
        if order.stage is not Stage.DECODING:
            self._hold(job)
        if order.stage is Stage.DENOISING:
            self._up(order.leader, lambda: self._core.step_done(self._clock.now, order.id))
            if job.steps_run < order.steps and job.going:
                job.stepping = list(job.going)
                self._run(job)
                return
            for part in order.parts:
                held = self._held[part.request_id].get(order.leader, 0)
                if held > part.first_step:
                    self._checkpoint(part.request_id, held)
        self._finish(job, Outcome.OK)

    def _node(self, slot: int) -> str:
        return f"node{slot // self._node_size}"

    def _pace(self, slot: int) -> float:
        """How many times as long as in the profile things take there."""
        paces = self._conditions.node_paces
        return paces[min(slot // self._node_size, len(paces) - 1)] if paces else 1.0

    def _learn(self, job: Job) -> None:
        """Tell the core how long a step or a decoding has taken, as the service would find it."""
        if self._paces is None:
            return
        order, size = job.order, (job.width, job.height)
        pace = self._paces.of(self._node(order.leader))
        if order.stage is Stage.DECODING:
            self._follow(pace.decode(*size, job.step_s))
        elif order.stage is Stage.DENOISING and all(self._computes(job, part) for part in job.stepping):
            self._follow(pace.step(*size, len(order.slots), len(job.stepping), job.step_s))

    def _follow(self, changed: bool) -> None:
        if changed and self._paces:
            self._core.profiles = self._paces.profiles

    def _finish(self, job: Job, outcome: Outcome) -> None:
        for slot in job.order.slots:
            self._report(slot, job, outcome)
        for slot in job.order.slots:
            self._look(slot)
        self._unblock()

    def _report(self, slot: int, job: Job, outcome: Outcome) -> None:
        """One member has its last word on a job."""
        order, now = job.order, self._clock.now
        if slot not in job.pending:
            return
        self._blocked.pop(order.id, None)
        job.pending.discard(slot)
        queue = self._queues[slot]
        if job in queue:
            queue.remove(job)
        seconds = now - job.begun_at if job.begun else 0.0
        self.tally.busy_seconds += seconds
        if not job.pending:
            del self._jobs[order.id]
        held = {id: self._held[id][slot] for id in order.request_ids if slot in self._held[id]}
        error = "this order was chosen to fail" if outcome is Outcome.ERROR else ""
        report = Report(slot, outcome, held, seconds, error)
        self._up(slot, lambda: self._core.order_done(self._clock.now, order.id, report))
        self._part(slot)

    def _unblock(self) -> None:
        for job in list(self._blocked.values()):
            self._try(job)

    def _checkpoint(self, request_id: str, step: int) -> None:
        delay = self._conditions.checkpoint_s
        if delay is None:
            return

        def arrive() -> None:
            if step > self._checkpoints.get(request_id, 0):
                self._checkpoints[request_id] = step
                self._core.checkpointed(request_id, step)

        self._clock.at(self._clock.now + delay, arrive)

    # Messages, in order in each direction.

    def _down(self, slot: int, action: Callable[[], None]) -> None:
        if not self._conditions.latency_s:
            action()
            return
        when = self._clock.now + self._random.uniform(0.0, self._conditions.latency_s)
        when = self._last_down[slot] = max(when, self._last_down.get(slot, 0.0))
        life = self._lives[slot]

        def arrive() -> None:
            # What was meant for its predecessor went down with that one's stream.
            if self._lives[slot] == life:
                action()

        self._clock.at(when, arrive)

    def _up(self, slot: int, event: Callable[[], Iterable[Effect]]) -> None:
        when = self._clock.now
        if self._conditions.latency_s:
            when += self._random.uniform(0.0, self._conditions.latency_s)
            when = self._last_up[slot] = max(when, self._last_up.get(slot, 0.0))
        # Never at once, so that the core is not called while it is being obeyed.
        self._clock.at(when, lambda: self._send(list(event())))
