"""The simulator: the server's own core in virtual time, with executors replaced by a profile.

Events are kept in a heap by time, then by insertion, so that a run is a pure function of its inputs.
"""

import heapq
import itertools
import math
import random
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

from scheduler.orders import Abort, Effect, Give, Order, Outcome, Report, Truncate
from scheduler.problem import Decision, Policy, Stage
from scheduler.profile import Profile
from scheduler.rounds import Config, Rounds
from scheduler.tracking import Submission, Tracked


@dataclass(frozen=True, slots=True)
class Arrival:
    """A submission and when it comes, in seconds from the start."""

    at: float
    submission: Submission


@dataclass(frozen=True, slots=True)
class Conditions:
    """What the virtual executors are like; times in seconds.

    `step_cv` is the coefficient of variation of step times, `switch_s` what a group costs whose
    members last ran in another. Decisions take `decision_s`, or with `charge_measured` as long as the
    policy really took.
    """

    step_cv: float = 0.0
    switch_s: float = 0.0
    decision_s: float = 0.0
    charge_measured: bool = False
    budget_s: float = 0.05
    seed: int = 0


@dataclass(slots=True)
class Outcomes:
    """What a run gave."""

    requests: list[Tracked]
    decisions: list[Decision] = field(default_factory=list)
    decision_seconds: list[float] = field(default_factory=list)
    switches: int = 0
    busy_seconds: float = 0.0
    ended_at: float = 0.0


class Fleet:
    """Virtual executors: each runs its orders in turn, a group when all its members are free."""

    def __init__(self, profile: Profile, conditions: Conditions, slots: Iterable[int]) -> None:
        self._profile = profile
        self._conditions = conditions
        self._random = random.Random(conditions.seed)
        self._queues: dict[int, deque[Order]] = {slot: deque() for slot in slots}
        self._group: dict[int, tuple[int, ...]] = {}
        self._running: set[int] = set()
        self._truncated: set[int] = set()
        self.switches = 0
        self.busy_seconds = 0.0

    def give(self, order: Order) -> None:
        """Queue an order on all its slots."""
        for slot in order.slots:
            self._queues[slot].append(order)

    def truncate(self, order_id: int) -> None:
        """Stop an order at its next step boundary."""
        self._truncated.add(order_id)

    def startable(self, in_flight: Callable[[Order], bool]) -> list[Order]:
        """Orders whose members are all free and whose request has no earlier order `in_flight`."""
        heads = {queue[0].id: queue[0] for queue in self._queues.values() if queue}
        return [
            order
            for order in sorted(heads.values(), key=lambda o: o.id)
            if order.id not in self._running
            and all(self._queues[slot][0] is order for slot in order.slots)
            and not in_flight(order)
        ]

    def start(self, order: Order, width: int, height: int) -> list[float]:
        """Begin an order; the seconds from now at which its steps end (one value: the whole order)."""
        self._running.add(order.id)
        lag = 0.0
        if any(self._group.get(slot) != order.slots for slot in order.slots):
            if len(order.slots) > 1:
                lag = self._conditions.switch_s
            self.switches += any(slot in self._group for slot in order.slots)
            self._group.update(dict.fromkeys(order.slots, order.slots))
        match order.stage:
            case Stage.ENCODING:
                return [lag + self._noisy(self._profile.encode())]
            case Stage.DECODING:
                return [lag + self._noisy(self._profile.decode(width, height))]
            case _:
                step = self._profile.step(width, height, len(order.slots))
                return [lag + t for t in itertools.accumulate(self._noisy(step) for _ in range(order.steps))]

    def goes_on(self, order: Order) -> bool:
        """Whether an order may begin its next step."""
        return order.id not in self._truncated

    def finish(self, order: Order, seconds: float) -> None:
        """Free the order's slots."""
        self._running.discard(order.id)
        self._truncated.discard(order.id)
        for slot in order.slots:
            self._queues[slot].popleft()
        self.busy_seconds += seconds * len(order.slots)

    def _noisy(self, seconds: float) -> float:
        cv = self._conditions.step_cv
        return seconds * max(0.1, self._random.gauss(1.0, cv)) if cv else seconds


class Simulation:
    """One run of a policy over a workload."""

    def __init__(
        self,
        policy: Policy,
        profile: Profile,
        gpus: int,
        arrivals: Iterable[Arrival],
        *,
        config: Config | None = None,
        conditions: Conditions | None = None,
    ) -> None:
        self._policy = policy
        self._conditions = conditions or Conditions()
        self._rounds = Rounds(config or Config(), profile.limited(gpus))
        self._fleet = Fleet(profile, self._conditions, range(gpus))
        self._heap: list[tuple[float, int, Callable[[float], list[Effect]]]] = []
        self._sequence = itertools.count()
        self._planning = False
        self._outcomes = Outcomes([])
        self._in_flight: dict[str, deque[int]] = {}
        for slot in range(gpus):
            self._rounds.executor_joined(0.0, slot)
        for arrival in arrivals:
            self._at(arrival.at, partial(self._submit, arrival.submission))

    def run(self) -> Outcomes:
        """Run until every request has ended."""
        now = 0.0
        while self._heap or not self._idle():
            wake = math.inf if self._planning or self._idle() else self._rounds.wake_at(now)
            if not self._heap and wake == math.inf:
                raise RuntimeError(f"nothing happens any more at {now:.3f} s, with requests outstanding")
            if self._heap and self._heap[0][0] <= wake:
                now, _, event = heapq.heappop(self._heap)
                self._apply(now, event(now))
            else:
                now = wake
                self._plan(now)
        if self._rounds.rejected:
            raise RuntimeError(f"the policy made {self._rounds.rejected} assignments that cannot be given")
        self._outcomes.requests = list(self._rounds.requests.values())
        self._outcomes.switches = self._fleet.switches
        self._outcomes.busy_seconds = self._fleet.busy_seconds
        self._outcomes.ended_at = now
        return self._outcomes

    def _submit(self, submission: Submission, now: float) -> list[Effect]:
        return self._rounds.submit(now, submission)

    def _idle(self) -> bool:
        return all(tracked.stage.ended for tracked in self._rounds.requests.values())

    def _at(self, when: float, event: Callable[[float], list[Effect]]) -> None:
        heapq.heappush(self._heap, (when, next(self._sequence), event))

    def _plan(self, now: float) -> None:
        self._apply(now, self._rounds.tick(now))
        problem = self._rounds.problem(now)
        if problem is None:
            return
        started = time.perf_counter()
        plan = self._policy(problem, self._conditions.budget_s)
        took = time.perf_counter() - started
        self._outcomes.decisions.append(plan.decision)
        self._outcomes.decision_seconds.append(took)
        delay = took if self._conditions.charge_measured else self._conditions.decision_s
        if delay <= 0:
            self._apply(now, self._rounds.commit(now, plan))
            return

        def commit(when: float) -> list[Effect]:
            self._planning = False
            return self._rounds.commit(when, plan)

        self._planning = True
        self._at(now + delay, commit)

    def _apply(self, now: float, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Give(order):
                    self._fleet.give(order)
                    self._in_flight.setdefault(order.request_id, deque()).append(order.id)
                case Truncate(order_id):
                    self._fleet.truncate(order_id)
                case Abort():
                    raise NotImplementedError("virtual executors do not fail yet")
        for order in self._fleet.startable(lambda o: self._in_flight[o.request_id][0] != o.id):
            self._start(now, order)

    def _start(self, now: float, order: Order) -> None:
        if not self._fleet.goes_on(order):
            self._at(now, lambda when: self._finish(when, order, 0.0, order.first_step))
            # Marks it as running, so that it is not started twice.
            self._fleet.start(order, 16, 16)
            return
        submission = self._rounds.requests[order.request_id].submission
        ends = self._fleet.start(order, submission.width, submission.height)
        if order.stage is not Stage.DENOISING:
            self._at(now + ends[0], lambda when: self._finish(when, order, ends[0], order.first_step))
            return
        self._step(now, order, ends, 0)

    def _step(self, began: float, order: Order, ends: list[float], index: int) -> None:
        def done(now: float) -> list[Effect]:
            effects = self._rounds.step_done(now, order.id)
            behind = index + 1
            if behind < len(ends) and self._fleet.goes_on(order):
                self._step(began, order, ends, behind)
                return effects
            return effects + self._finish(now, order, ends[index], order.first_step + behind)

        self._at(began + ends[index], done)

    def _finish(self, now: float, order: Order, seconds: float, steps_done: int) -> list[Effect]:
        self._fleet.finish(order, seconds)
        self._in_flight[order.request_id].popleft()
        effects: list[Effect] = []
        for slot in order.slots:
            report = Report(slot, Outcome.OK, steps_done, seconds)
            effects += self._rounds.order_done(now, order.id, report)
        return effects
