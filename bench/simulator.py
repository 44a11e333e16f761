"""The simulator: the server's own core in virtual time, with executors replaced by a profile.

A run is a pure function of its inputs, but for the decision times that it reports.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

from bench.clock import Clock
from bench.conditions import Conditions, Fault
from bench.fleet import Fleet, Tally
from scheduler.admission import Admission, judge
from scheduler.config import Config
from scheduler.orders import Changed, Effect
from scheduler.problem import Decision, Policy, Stage
from scheduler.profile import Profile
from scheduler.rounds import Rounds
from scheduler.skipping import Computed
from scheduler.tracking import Submission, Tracked


@dataclass(frozen=True, slots=True)
class Arrival:
    """A submission and when it comes, in seconds from the start. `label` is a class to report by."""

    at: float
    submission: Submission
    label: str = ""


@dataclass(slots=True)
class Outcomes:
    """What a run gave; times in seconds."""

    requests: list[Tracked]
    tally: Tally
    decisions: list[Decision] = field(default_factory=list)
    decision_seconds: list[float] = field(default_factory=list)
    core_seconds: list[float] = field(default_factory=list)
    """CPU time of the core for each decision: finding out what there is to plan."""
    ended_at: float = 0.0
    rejected: int = 0
    """Assignments that the policy should not have made."""
    refused: list[Submission] = field(default_factory=list)
    """Requests that were not let in."""


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
        faults: Iterable[Fault] = (),
        roles: Mapping[int, frozenset[Stage]] | None = None,
        computed: Computed = range,
        cancellations: Iterable[tuple[float, str]] = (),
        node_size: int | None = None,
        island_size: int | None = None,
        admission: Admission = Admission.ACCEPT,
    ) -> None:
        self._policy = policy
        self._admission = admission
        self._conditions = conditions or Conditions()
        self._clock = Clock()
        known = profile.switching(self._conditions.switch_s if self._conditions.knows_switches else 0.0)
        self._core = Rounds(config or Config(), known.limited(node_size or gpus))
        self._core.computed = computed
        self._fleet = Fleet(
            profile,
            self._conditions,
            self._clock,
            self._core,
            self._apply,
            node_size or gpus,
            roles,
            island_size,
        )
        self._faults = iter(faults)
        self._planning = False
        self.outcomes = Outcomes([], self._fleet.tally)
        self._expected = 0
        self._ended: set[str] = set()
        for slot in range(gpus):
            self._fleet.join(slot)
        for arrival in arrivals:
            self._expected += 1
            self._clock.at(arrival.at, partial(self._submit, arrival.submission))
        for at, request_id in cancellations:
            self._clock.at(at, partial(self._cancel, request_id))
        self._await_fault()

    def run(self, enough: Callable[[], bool] = lambda: False) -> Outcomes:
        """Run until every request has ended and every order has been reported, or there is `enough`."""
        clock, core = self._clock, self._core
        while (len(self._ended) < self._expected or core.busy) and not enough():
            if clock.next_at <= clock.now:
                clock.step()
                continue
            wake = math.inf if self._planning else core.wake_at(clock.now)
            if clock.next_at <= wake:
                if clock.next_at == math.inf:
                    raise RuntimeError(f"nothing happens any more at {clock.now:.3f} s: {self._stuck()}")
                clock.step()
            else:
                clock.now = wake
                self._plan()
        self.outcomes.requests = list(core.requests.values())
        self.outcomes.rejected = core.rejected
        self.outcomes.ended_at = max((t.finished_at for t in self.outcomes.requests), default=0.0)
        return self.outcomes

    @property
    def outstanding(self) -> int:
        """Requests that have arrived and not ended."""
        return self._core.outstanding

    def _submit(self, submission: Submission) -> None:
        now = self._clock.now
        verdict = judge(self._core, now, submission, self._admission)
        if verdict.accepted:
            self._apply(self._core.submit(now, submission, offer=verdict.offer))
        else:
            self._expected -= 1
            self.outcomes.refused.append(submission)

    def _cancel(self, request_id: str) -> None:
        if request_id in self._core.requests:
            self._apply(self._core.cancel(self._clock.now, request_id))

    def _await_fault(self) -> None:
        # One at a time: there may be faults without end.
        fault = next(self._faults, None)
        if fault is not None:
            self._clock.at(fault.at, partial(self._fail, fault))

    def _fail(self, fault: Fault) -> None:
        self._fleet.fail(fault)
        self._await_fault()

    def _plan(self) -> None:
        core, now = self._core, self._clock.now
        self._apply(core.tick(now))
        asked = time.process_time()
        problem = core.problem(now)
        core_s = time.process_time() - asked
        if problem is None:
            return
        started = time.perf_counter()
        plan = self._policy(problem, self._conditions.budget_s)
        took = time.perf_counter() - started
        self.outcomes.decisions.append(plan.decision)
        self.outcomes.decision_seconds.append(took)
        self.outcomes.core_seconds.append(core_s)
        delay = took if self._conditions.charge_measured else self._conditions.decision_s
        if delay <= 0:
            self._apply(core.commit(now, plan))
            return

        def commit() -> None:
            self._planning = False
            self._apply(core.commit(self._clock.now, plan))

        self._planning = True
        self._clock.at(now + delay, commit)

    def _apply(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Changed):
                if self._core.requests[effect.request_id].stage.ended:
                    self._ended.add(effect.request_id)
            else:
                self._fleet.obey(effect)

    def _stuck(self) -> str:
        waiting = [t for t in self._core.requests.values() if not t.stage.ended or t.flights]
        return "; ".join(f"{t.id} is {t.stage.value} at step {t.next_step}" for t in waiting[:5])
