"""Drives the core in real time: events in by the clock, effects out to executors, watchers and the journal.

Everything here runs on one event loop; only the policy (a pure function) and the journal's writes
run in threads of their own, so that neither holds up reports and orders.
"""

import asyncio
import contextlib
import math
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from scheduler import messages
from scheduler.admission import Admission, Declined, Verdict, judge
from scheduler.fleet import Executor, Fleet
from scheduler.journal import Journal
from scheduler.orders import Abort, Changed, Effect, Give, Order, Outcome, Part, Release, Truncate
from scheduler.pace import Paces
from scheduler.policies import resolve
from scheduler.problem import EVERY_ROLE, Plan, Policy, Problem, Stage
from scheduler.profile import Profile, StepTime
from scheduler.rounds import Rounds
from scheduler.tracking import Submission, Tracked
from tetriserve.logs import Logger
from tetriserve.step_cache import computed
from tetriserve.v1 import executor_pb2, scheduler_pb2, types_pb2

log = Logger("scheduler.driver")
T = TypeVar("T")

FALLBACK_POLICY = "edf"
LONGEST_SLEEP_S = 0.5
MAX_PREVIEW_BYTES = 1 << 18
MEASURE_ATTEMPTS = 2


@dataclass(slots=True)
class Entry:
    """What the core does not need to know of a request that has not ended."""

    request: types_pb2.Request
    warnings: list[str] = field(default_factory=list)
    # By the event that wakes them: how many steps apart they want previews, 0 for none.
    watchers: dict[asyncio.Event, int] = field(default_factory=dict)
    preview: scheduler_pb2.Preview | None = None

    @property
    def preview_every(self) -> int:
        """Steps between the previews that somebody wants; 0: nobody does."""
        return min((every for every in self.watchers.values() if every), default=0)

    journaled_stage: types_pb2.Stage = types_pb2.STAGE_QUEUED


class Driver:
    """One scheduler's state and its planning loop."""

    def __init__(
        self,
        rounds: Rounds,
        fleet: Fleet,
        journal: Journal,
        policy: str,
        *,
        budget_s: float,
        lease_s: float,
        expect: int,
        admission: Admission = Admission.ACCEPT,
        warm_groups: bool | None = None,
    ) -> None:
        self.rounds = rounds
        self.fleet = fleet
        self.journal = journal
        self.policy_name = policy
        self.expect = expect
        self.admission = admission
        self.lease_s = lease_s
        self.entries: dict[str, Entry] = {}
        self.accepting = True
        self.term = uuid.uuid4().hex  # orders are counted anew by each scheduler
        self._policy: Policy = resolve(policy)
        self._budget_s = budget_s
        self._assembled = False
        self._warm_groups = warm_groups
        self._warm = False
        if warm_groups is not None:
            rounds.warm_groups = warm_groups
        self._paces: Paces | None = None
        self._measured: list[StepTime] = []  # before there was a step among them
        self._attempts: Counter[int] = Counter()  # at measuring a degree
        self._ended: set[str] = set()  # requests that can be dropped from memory
        self._kick = asyncio.Event()
        self._quiet = asyncio.Event()  # no order is out
        self._quiet.set()
        self._solver = ThreadPoolExecutor(1, "policy")
        self._writer = ThreadPoolExecutor(1, "journal")
        self._clock_offset = time.time() - time.monotonic()

    def now(self) -> float:
        """Unix time that never jumps while the process lives."""
        return time.monotonic() + self._clock_offset

    # For the faces.

    @property
    def ready(self) -> bool:
        """Whether work can run: enough executors, their step times known, their first groups warm."""
        if not self._complete or self.rounds.profile is None or self.rounds.measuring:
            return False
        # Who joins later is warmed while the others work.
        self._warm = self._warm or not self.rounds.preparing
        return self._warm

    @property
    def _complete(self) -> bool:
        # Only the beginning waits for all of them: who is lost later must not stop the others.
        self._assembled = self._assembled or len(self.fleet.executors) >= self.expect
        return self._assembled and bool(self.fleet.executors)

    @property
    def warnings(self) -> list[str]:
        """What keeps requests waiting."""
        if self.fleet.model and not self.fleet.executors:
            return ["all executors have left: requests wait until one joins"]
        return [
            f"no executor can run {stage.value}: requests wait until one joins with that role (--roles)"
            for stage in (self.rounds.lacking if self._complete else ())
        ]

    def _warn(self) -> None:
        for warning in self.warnings if self.accepting else ():
            log.warning(warning)

    async def written(self, write: Callable[..., T], *args: Any) -> T:
        """Run a call of the journal in its thread, after the calls before it."""
        return await asyncio.get_running_loop().run_in_executor(self._writer, write, *args)

    async def submit(self, request: types_pb2.Request, warnings: list[str]) -> types_pb2.RequestStatus:
        """Accept a checked request: journal first, then the core.

        KeyError: the id is taken. Declined: its deadline cannot be met, or promised.
        """
        entry = Entry(request, warnings)
        now = self.now()
        submission = messages.submission(request)
        self._judge(now, submission, request)
        draft = Tracked.new(submission, now)
        await self.written(self.journal.add, messages.status(draft, request, warnings, spans=False))
        self.entries[request.id] = entry
        try:
            # Somebody else may have been promised the same GPUs while the journal was written.
            verdict = self._judge(now, submission, request)
        except Declined:
            self.apply(self.rounds.submit(self.now(), submission, arrived_at=now))
            self.apply(self.rounds.cancel(self.now(), request.id))
            raise
        self.apply(self.rounds.submit(self.now(), submission, arrived_at=now, offer=verdict.offer))
        if verdict.offer:
            await self.written(self.journal.update, self.live_status(request.id))
        log.info("request accepted", request=request.id, size=f"{submission.width}x{submission.height}",
                 steps=submission.steps, deadline_s=submission.deadline_s)  # fmt: skip
        return self.live_status(request.id)

    def _judge(self, arrived_at: float, submission: Submission, request: types_pb2.Request) -> Verdict:
        now = self.now()
        verdict = judge(self.rounds, now, submission, self.admission, request.unpromised, arrived_at)
        if not verdict.accepted:
            raise Declined(submission.deadline_s or math.inf, verdict.earliest_s, self.admission)
        return verdict

    async def restore(self) -> int:
        """Go on with what the journal holds; the number of requests resumed."""
        resumed = await self.written(self.journal.outstanding)
        for status in resumed:
            request = status.request
            self.entries[request.id] = Entry(request, list(status.warnings), journaled_stage=status.stage)
            checkpoint = self.journal.checkpoint(request.id)
            self.apply(
                self.rounds.submit(
                    self.now(),
                    messages.submission(request),
                    arrived_at=status.submitted_at.ToNanoseconds() / 1e9,
                    checkpoint=checkpoint[0] if checkpoint else 0,
                    promised=status.promised,
                )
            )
        return len(resumed)

    def live_status(self, request_id: str, spans: bool = False) -> types_pb2.RequestStatus:
        """Status of a request that has not ended. KeyError: it has, or was never there."""
        entry = self.entries[request_id]
        return messages.status(self.rounds.requests[request_id], entry.request, entry.warnings, spans)

    def set_policy(self, name: str) -> None:
        """Plan by another policy from the next round on. ValueError: unknown."""
        self._policy, self.policy_name = resolve(name), name
        log.info("policy set", policy=name)

    # For executors.

    def joined(self, executor: Executor) -> None:
        """An executor has registered."""
        r = executor.registration
        measured = messages.step_times(r.step_times, r.device)
        self.learn(measured)
        if self._paces:
            self._follow(self._paces.joins(r.node, measured))
        if self._warm_groups is None and r.HasField("device_index"):
            self.rounds.warm_groups = True  # on GPUs: NCCL
        # Executors of one fingerprint have one step cache.
        self.rounds.computed = partial(computed, every=r.model.step_cache)
        self.apply(self.rounds.executor_joined(self.now(), executor.slot, r.node, executor.roles, r.island))
        held = {state.request_id: state.step for state in r.held}
        self.apply(self.rounds.executor_holds(self.now(), executor.slot, held))
        self._prepare_groups()
        roles = "all" if executor.roles == EVERY_ROLE else ",".join(sorted(r.value for r in executor.roles))
        log.info("executor joined", slot=executor.slot, device=r.device, address=r.address, roles=roles)
        self._warn()

    def leaving(self, executor: Executor) -> None:
        """An executor wants no more orders; what it has not begun it hands back."""
        executor.leaving = True
        self.apply(self.rounds.executor_leaving(self.now(), executor.slot))

    def lost(self, executor: Executor, why: str) -> None:
        """An executor's stream has ended, or its lease."""
        if self.fleet.remove(executor):
            executor.hang_up()
            self.apply(self.rounds.executor_lost(self.now(), executor.slot))
            self._prepare_groups()
            (log.info if executor.leaving else log.warning)("executor gone", slot=executor.slot, why=why)
            self._warn()

    def step_done(self, done: executor_pb2.StepDone) -> None:
        """A step has ended."""
        order = self.rounds.order(done.order_id)
        leader = self.fleet.executors.get(order.leader) if order else None
        if order and leader and order.parts and self._paces and self._computes(order, done.step):
            s = self.rounds.requests[order.parts[0].request_id].submission
            pace, batch = self._paces.of(leader.registration.node), max(1, done.batch)
            self._follow(pace.step(s.width, s.height, len(order.slots), batch, done.seconds))
        self.apply(self.rounds.step_done(self.now(), done.order_id))

    def _computes(self, order: Order, step: int) -> bool:
        """Whether a step of the order is computed for all of its requests, and so tells the pace."""
        requests = self.rounds.requests
        return all(
            part.first_step + step in self.rounds.computed(requests[part.request_id].submission.steps)
            for part in order.parts
            if part.request_id in requests
        )

    def order_done(self, executor: Executor, done: executor_pb2.OrderDone) -> None:
        """An order has ended on an executor."""
        report = messages.report(executor.slot, done)
        order = self.rounds.order(done.order_id)
        request_ids = order.request_ids if order else ()
        for entry in (self.entries[id] for id in request_ids if id in self.entries):
            entry.warnings += [w for w in done.warnings if w not in entry.warnings]
            image = entry.request.image
            if order and order.stage is Stage.DECODING and report.outcome is Outcome.OK and self._paces:
                pace = self._paces.of(executor.registration.node)
                self._follow(pace.decode(image.width, image.height, done.seconds))
        if report.error:
            log.warning("order failed", requests=request_ids, order=done.order_id, slot=executor.slot,
                        outcome=report.outcome.value, error=report.error)  # fmt: skip
        if done.step_times:
            self.learn(messages.step_times(done.step_times, executor.registration.device))
        self.apply(self.rounds.order_done(self.now(), done.order_id, report))
        self._prepare_groups()

    async def uploaded(self, header: executor_pb2.UploadHeader, data: bytes) -> None:
        """An image, a checkpoint or a preview has come; what ended meanwhile is ignored."""
        if header.request_id not in self.entries:
            return
        if header.kind == executor_pb2.UploadHeader.KIND_PREVIEW:
            self._previewed(self.entries[header.request_id], header.step, data)
        elif header.kind == executor_pb2.UploadHeader.KIND_IMAGE:
            await self.written(self.journal.save_image, header.request_id, data)
        else:
            await self.written(self.journal.save_checkpoint, header.request_id, header.step, data)
            self.rounds.checkpointed(header.request_id, header.step)

    def _previewed(self, entry: Entry, step: int, jpeg: bytes) -> None:
        """Keep the latest preview, for who watches now."""
        newer = entry.preview is None or entry.preview.step < step
        if newer and entry.preview_every and len(jpeg) <= MAX_PREVIEW_BYTES:
            entry.preview = scheduler_pb2.Preview(step=step, jpeg=jpeg)
            for watcher in entry.watchers:
                watcher.set()

    # The loop.

    async def run(self) -> None:
        """Plan until cancelled."""
        while True:
            can_plan = self.accepting and self.ready
            wake = self.rounds.wake_at(self.now()) - self.now() if can_plan else LONGEST_SLEEP_S
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._kick.wait(), min(max(0.0, wake), LONGEST_SLEEP_S))
            self._kick.clear()
            now = self.now()
            for executor in self.fleet.silent(now, self.lease_s):
                self.lost(executor, "its lease has ended")
            self._retire()
            self.apply(self.rounds.tick(now))
            if self.accepting and self.ready and self.rounds.wake_at(now) <= now:
                await self._plan(now)

    async def drain(self, timeout_s: float) -> bool:
        """Give no more orders; whether all that are out have been reported within `timeout_s`."""
        self.accepting = False
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._quiet.wait(), timeout_s)
        return not self.rounds.busy

    async def close(self) -> None:
        """Hang up on executors and give the journal back."""
        for executor in list(self.fleet.executors.values()):
            executor.hang_up()
        for request_id in list(self.entries):
            await self.written(self.journal.update, self.live_status(request_id, spans=True))
        await self.written(self.journal.close)
        self._writer.shutdown()
        self._solver.shutdown(cancel_futures=True)

    def _retire(self) -> None:
        """Drop ended requests from memory; the journal has them."""
        for request_id in list(self._ended):
            status = self.live_status(request_id, spans=True)
            if self.rounds.forget(request_id):
                self._ended.discard(request_id)
                self._write(self.journal.update, status)
                entry = self.entries.pop(request_id)
                self._write(self.journal.drop_checkpoints, request_id)
                for watcher in entry.watchers:
                    watcher.set()

    async def _plan(self, now: float) -> None:
        problem = self.rounds.problem(now)
        if problem is None:
            return
        try:
            plan = await asyncio.get_running_loop().run_in_executor(
                self._solver, self._policy, problem, self._budget_s
            )
        except Exception:
            log.exception("policy failed, planning this round by the fallback", policy=self.policy_name)
            plan = self._fall_back(problem)
        rejected = self.rounds.rejected
        self.apply(self.rounds.commit(self.now(), plan))
        if self.rounds.rejected > rejected:
            log.error("policy made a plan that cannot be carried out", policy=self.policy_name)
        d = plan.decision
        log.debug("round planned", requests=len(problem.requests), orders=len(plan.assignments),
                  source=d.source, status=d.status, bound=d.bound, gap=d.gap,
                  gpu_seconds=d.gpu_seconds, gpu_seconds_gap=d.gpu_seconds_gap,
                  build_s=d.build_s, solve_s=d.solve_s)  # fmt: skip

    def _fall_back(self, problem: Problem) -> Plan:
        return resolve(FALLBACK_POLICY)(problem, self._budget_s)

    def apply(self, effects: list[Effect]) -> None:
        """Carry out what the core says."""
        for effect in effects:
            match effect:
                case Give(order):
                    self._give(order)
                case Truncate(order_id, leader, request_id):
                    truncate = executor_pb2.Truncate(order_id=order_id, request_id=request_id)
                    self._send(leader, executor_pb2.JoinResponse(truncate=truncate))
                case Release(request_id, slots):
                    release = executor_pb2.JoinResponse(release=executor_pb2.Release(request_id=request_id))
                    for slot in slots:
                        self._send(slot, release)
                case Abort(epoch, slots, lost):
                    abort = executor_pb2.AbortGroups(epoch=epoch, slots=lost)
                    for slot in slots:
                        self._send(slot, executor_pb2.JoinResponse(abort_groups=abort))
                case Changed(request_id):
                    self._changed(request_id)
        if effects:
            self._kick.set()
        if self.rounds.busy:
            self._quiet.clear()
        else:
            self._quiet.set()

    def _send(self, slot: int, command: executor_pb2.JoinResponse) -> None:
        if executor := self.fleet.executors.get(slot):
            executor.send(command)

    def _give(self, order: Order) -> None:
        members = [self.fleet.executors[slot].member for slot in order.slots]
        message = messages.order(order, members, map(self._part, order.parts))
        if order.measures:
            message.profile.extend(messages.to_measure(self._profile_entries(), len(order.slots)))
        log.debug("order given", requests=order.request_ids, order=order.id, slots=order.slots,
                  stage=order.stage and order.stage.value, steps=order.steps,
                  first_steps=[part.first_step for part in order.parts])  # fmt: skip
        for slot in order.slots:
            self._send(slot, executor_pb2.JoinResponse(order=message))

    def _part(self, part: Part) -> executor_pb2.Part:
        executors = self.fleet.executors
        message = executor_pb2.Part(
            request_id=part.request_id,
            image=self.entries[part.request_id].request.image,
            first_step=part.first_step,
            preview_every=self.entries[part.request_id].preview_every,
            holders=[executors[slot].registration.address for slot in part.holders if slot in executors],
        )
        if part.from_checkpoint and (found := self.journal.checkpoint(part.request_id)):
            step, path = found
            # The file may have moved on since the order was made; then the order fails and is made anew.
            if step == part.first_step:
                message.checkpoint = path.read_bytes()
        return message

    def _changed(self, request_id: str) -> None:
        tracked, entry = self.rounds.requests.get(request_id), self.entries.get(request_id)
        if tracked is None or entry is None:
            return
        stage = messages.STAGES[tracked.stage]
        if stage != entry.journaled_stage:
            entry.journaled_stage = stage
            self._write(self.journal.update, self.live_status(request_id, spans=True))
            if tracked.stage.ended:
                self._ended.add(request_id)
                log.info("request ended", request=request_id, stage=tracked.stage.value, late=tracked.late,
                         seconds=tracked.finished_at - tracked.arrived_at, error=tracked.error)  # fmt: skip
        for watcher in entry.watchers:
            watcher.set()

    def _write(self, write: Callable[..., None], *args: Any) -> None:
        self._writer.submit(write, *args).add_done_callback(_complain)

    # The profile.

    def _profile_entries(self) -> tuple[StepTime, ...]:
        return self._paces.base.entries if self._paces else ()

    def learn(self, entries: Sequence[StepTime]) -> None:
        """Take step times into the profile; what is already known is kept."""
        if not entries:
            return
        self._measured += entries
        if not self._paces and not any(e.kind == "step" for e in entries):
            return  # from an executor that does not denoise: nothing can be planned yet
        entries, self._measured = self._measured, []
        profile = Profile([*entries, *self._profile_entries()])
        if self._paces:
            self._paces.rebase(profile)
        else:
            self._paces = Paces(profile)
        self._follow(True)
        log.info("step times learnt", entries=len(entries), max_degree=profile.max_degree)

    def _follow(self, changed: bool) -> None:
        """Plan with the profile, at each node's present pace."""
        if changed and self._paces:
            self.rounds.profile, self.rounds.profiles = self._paces.base, self._paces.profiles

    def _prepare_groups(self) -> None:
        """Measure the next degree that the fleet can run and nobody has measured; then warm groups."""
        if self.rounds.measuring or self.rounds.profile is None or not self._complete:
            return
        known = {e.degree for e in self._profile_entries() if e.kind == "step"}
        for degree, blocks in self.rounds.layout.blocks.items():
            if degree not in known and self._attempts[degree] < MEASURE_ATTEMPTS:
                self._attempts[degree] += 1
                slots = self.rounds.layout.members[blocks[0]]
                log.info("measuring step times", degree=degree, slots=slots)
                self.apply(self.rounds.measure(self.now(), slots))
                return
        self.apply(self.rounds.warm_up(self.now()))


def _complain(future: Any) -> None:
    if error := future.exception():
        log.error("journal write failed", error=error)
