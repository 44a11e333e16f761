"""The one thread that owns the device and runs orders, in the order given.

An order of several members begins when all of them have met with the request's state in hand, so that
nobody waits in a collective for one who will not come. From then on the leader says before each step
for which requests it is a go, and all stop at the same boundary, or, where the order yields, between the
same two layers. What goes wrong ends the order, never the thread.
"""

import functools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for

import torch
from PIL import Image

from executor import attention
from executor.calibration import Calibration
from executor.courier import Courier
from executor.encodings import Encodings
from executor.group import Left
from executor.groups import CalledOff, Group, GroupAborted, Groups
from executor.image import ImageSpec
from executor.jobs import Halt, Job, Jobs
from executor.latents import Condition, NotHeld, State, Store, pack_latent, unpack, unpack_latent
from executor.pipelines import Pipeline
from executor.pipelines.base import check_batch
from executor.roles import DECODE, DENOISE, ENCODE
from executor.wake import Wake
from executor.yielding import Exit
from tetriserve.logs import Logger
from tetriserve.v1 import executor_pb2 as pb
from tetriserve.v1 import types_pb2 as types

# Members come when they have run what they have before; lost ones are announced by the scheduler.
MEETING_TIMEOUT_S = 600.0
# The leader decides within microseconds of the end of a step.
DECISION_TIMEOUT_S = 30.0
LOOK_UP_S = 0.02

log = Logger("executor.runner")


class StateMissing(Exception):
    """Nobody who should hold the request's state has it."""


class Runner(threading.Thread):
    """Takes orders from `jobs` until that is closed, and reports how each has ended.

    `address` is this executor's own, as other executors know it.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        encodings: Encodings,
        calibration: Calibration,
        groups: Groups,
        store: Store,
        courier: Courier,
        jobs: Jobs,
        address: str,
    ) -> None:
        super().__init__(name="device", daemon=True)
        self._pipeline = pipeline
        self._encodings = encodings
        self._calibration = calibration
        self._groups = groups
        self._store = store
        self._courier = courier
        self._jobs = jobs
        self._address = address

    def run(self) -> None:
        """Run orders until there will be no more."""
        try:
            while (job := self._jobs.take()) is not None:
                self._run(job)
            self._groups.close()
        except Exception:
            log.exception("the device thread has died")

    def _run(self, job: Job) -> None:
        order = job.order
        done = pb.OrderDone(order_id=order.id, outcome=pb.OUTCOME_OK)
        image = None
        try:
            _go(job)
            self._check_role(order.stage)
            match order.stage:
                case types.STAGE_ENCODING:
                    self._encode(job, done)
                case types.STAGE_DENOISING:
                    self._denoise(job, done)
                case types.STAGE_DECODING:
                    image = self._decode(job, done)
                case types.STAGE_UNSPECIFIED:
                    self._measure(job, done)
                case _:
                    raise ValueError(f"no order is about stage {order.stage}")
        except Exception as error:
            # A lost leader has nobody left to tell; if it is frozen, its store would not even answer.
            if job.degree > 1 and not job.met and job.leader not in job.lost:
                self._call_off(job, str(error))
            _fail(done, error)
        for request_id in job.request_ids:
            if (held := self._held(request_id)) is not None:
                done.held.add(request_id=request_id, step=held.step)
        _log(job, done, self._encodings)
        if image is None:
            job.session.report(pb.JoinRequest(order_done=done))
        else:
            self._courier.image(job, image, done)
        if done.outcome == pb.OUTCOME_ERROR:
            # Raises where the device itself is broken: then this executor must not go on.
            self._synchronize()

    # Stages.

    def _encode(self, job: Job, done: pb.OrderDone) -> None:
        began = time.perf_counter()
        part = _only(job)
        image = _image(part)
        done.warnings.extend(self._pipeline.check(image))
        condition = self._condition(image)
        if part.checkpoint:
            state = self._resume(part, image, condition)
        else:
            state = self._pipeline.start(image, condition)
        self._synchronize()
        self._store.put(part.request_id, state)
        done.seconds = time.perf_counter() - began

    def _denoise(self, job: Job, done: pb.OrderDone) -> None:
        parts, steps = list(job.order.parts), job.order.steps
        states = [self._obtain(job, part) for part in parts]
        if any(state.image.steps < state.step + steps for state in states):
            raise ValueError(f"the order has {steps} steps, a request fewer than that left")
        check_batch(states)
        group = self._meet(job)
        self._keep(parts, states)
        kept = states.copy()
        began = ended = time.perf_counter()

        def end(step: int, going: list[int], after: list[State]) -> None:
            """The device is through with a step."""
            nonlocal kept, ended
            # An aborted collective leaves garbage.
            group.check()
            before, kept = kept, after
            self._keep(parts, kept)
            seconds, ended = time.perf_counter() - ended, time.perf_counter()
            if group.leads:
                step_done = pb.StepDone(order_id=job.order.id, step=step, seconds=seconds, batch=len(going))
                job.session.report(pb.JoinRequest(step_done=step_done))
                for index in going:
                    self._preview(job, parts[index], before[index], kept[index])

        wake = Wake(self._pipeline.device)
        try:
            for step in range(steps):
                going = _going(job, group, step)
                if not going:
                    break
                try:
                    with attention.between_layers(self._look(job, group, step)):
                        stepped = self._pipeline.step([states[index] for index in going], group)
                except Left as place:
                    log.debug("step left", order=job.order.id, step=step, at=place)
                    # The device may still be at layers before it.
                    wake.add(group.check)
                    break
                for index, state in zip(going, stepped, strict=True):
                    states[index] = state
                wake.add(functools.partial(end, step, going, states.copy()))
            wake.drain()
        except Exception as error:
            # The others must not wait for a word or a tensor from here.
            group.abort(f"{type(error).__name__}: {error}")
            raise
        finally:
            done.seconds = time.perf_counter() - began
            for part, state in zip(parts, kept, strict=True):
                if group.leads and state.step > part.first_step:
                    pack = functools.partial(pack_latent, state)
                    self._courier.checkpoint(job, part.request_id, state.step, pack)

    def _look(self, job: Job, group: Group, step: int) -> Callable[[], None] | None:
        """What looks between the layers of a step whether to leave it; None: its order does not yield."""
        if not job.order.yields:
            return None
        return Exit(group, step, lambda: job.may_be_left, Wake(self._pipeline.device)).look

    def _preview(self, job: Job, part: pb.Part, before: State, after: State) -> None:
        if part.preview_every and after.step % part.preview_every == 0 and not after.done:
            draw = functools.partial(self._pipeline.preview, before, after)
            self._courier.preview(job, part.request_id, after.step, draw)

    def _keep(self, parts: Sequence[pb.Part], states: Sequence[State]) -> None:
        for part, state in zip(parts, states, strict=True):
            self._store.put(part.request_id, state)

    def _decode(self, job: Job, done: pb.OrderDone) -> Image.Image:
        part = _only(job)
        state = self._obtain(job, part)
        if not state.done:
            raise ValueError(f"step {state.step} of {state.image.steps} is too early to decode")
        self._store.put(part.request_id, state)
        began = time.perf_counter()
        image = self._pipeline.decode(state)
        done.seconds = time.perf_counter() - began
        return image

    def _measure(self, job: Job, done: pb.OrderDone) -> None:
        group = self._meet(job)
        began = time.perf_counter()
        try:
            if job.order.profile:
                done.step_times.extend(self._calibration.measure(group, job.order.profile))
            else:
                self._calibration.warm_up(group)
        except Exception as error:
            group.abort(f"{type(error).__name__}: {error}")
            raise
        done.seconds = time.perf_counter() - began

    # The state before the first step.

    def _obtain(self, job: Job, part: pb.Part) -> State:
        """The state of one of the order's requests at its first step.

        Raises:
            CalledOff: the order was withdrawn, or the one before it has ended early.
            StateMissing: nobody has it.
        """
        held = self._held(part.request_id)
        if held is not None and held.step == part.first_step:
            return held
        if held is not None and held.step < part.first_step and self._address in part.holders:
            raise CalledOff(f"step {part.first_step} was not reached, only {held.step}")
        image = _image(part)
        if part.checkpoint:
            if held is not None:
                condition = held.condition
            elif job.order.stage == types.STAGE_DECODING:
                condition = {}  # the latent is enough
            else:
                condition = self._condition(image)
            return self._resume(part, image, condition)
        holders = [address for address in part.holders if address != self._address]
        if holders:
            data = self._wait(job, self._courier.fetch(job, part, holders))
            if data is not None:
                return self._pipeline.checked(unpack(data, self._pipeline.device))
        self._check(job)
        if part.first_step > 0:
            raise StateMissing(f"the state at step {part.first_step} is not held by {holders or 'anybody'}")
        # The beginning can always be made anew.
        self._pipeline.check(image)
        return self._pipeline.start(image, self._condition(image))

    def _resume(self, part: pb.Part, image: ImageSpec, condition: Condition) -> State:
        """The state that the part's checkpoint makes with the condition."""
        state = unpack_latent(part.checkpoint, image, condition, self._pipeline.device)
        if state.step != part.first_step:
            raise ValueError(f"the checkpoint is at step {state.step}, not at {part.first_step}")
        return self._pipeline.checked(state)

    def _condition(self, image: ImageSpec) -> Condition:
        if ENCODE not in self._pipeline.roles:
            raise StateMissing("the encoded prompt is not held, and this executor has no text encoders")
        return self._pipeline.encode(image, self._encodings)

    def _check_role(self, stage: "types.Stage") -> None:
        role = {types.STAGE_ENCODING: ENCODE, types.STAGE_DECODING: DECODE}.get(stage, DENOISE)
        if role not in self._pipeline.roles:
            has = ", ".join(sorted(self._pipeline.roles))
            raise ValueError(f"this executor does not {role}: its roles are {has}")

    def _wait(self, job: Job, future: "Future[bytes | None]") -> bytes | None:
        """The future's result, unless the order is withdrawn first."""
        try:
            while not wait_for([future], LOOK_UP_S).done:
                self._check(job)
            return future.result()
        finally:
            future.cancel()

    def _check(self, job: Job) -> None:
        """Raise if the order, which has not begun, is not to begin."""
        _go(job)
        if job.degree == 1:
            return
        try:
            reason = self._groups.called_off(*job.meeting)
        except ConnectionError as error:
            leader = job.order.group.members[0].slot
            raise GroupAborted(f"slot {leader}, the leader, is gone: {error}", [leader]) from error
        if reason:
            raise CalledOff(reason)

    def _held(self, request_id: str) -> State | None:
        try:
            return self._store.get(request_id)
        except NotHeld:
            return None

    # The group.

    def _meet(self, job: Job) -> Group:
        """The order's group, once all members are there.

        Raises:
            CalledOff: the leader has withdrawn the order, or a member cannot run it.
            GroupAborted: a member is lost.
        """
        check = functools.partial(_go, job)
        group = self._groups.get(*job.meeting, timeout_s=MEETING_TIMEOUT_S, check=check)
        job.met = True
        return group

    def _call_off(self, job: Job, reason: str) -> None:
        """Tell the others that this member does not come; they may be waiting."""
        try:
            self._groups.call_off(*job.meeting, reason)
        except ConnectionError as error:
            log.info("the leader is gone", order=job.order.id, why=error)

    def _synchronize(self) -> None:
        """Wait for the device: what is reported as done must be done."""
        if self._pipeline.device.type == "cuda":
            torch.cuda.synchronize(self._pipeline.device)


def _go(job: Job) -> None:
    """Raise if the order is not to begin."""
    if job.halt is Halt.ABORTED:
        raise GroupAborted(job.reason, job.lost)
    if job.halt is not Halt.NONE:
        raise CalledOff(job.reason)


def _going(job: Job, group: Group, step: int) -> list[int]:
    """For which parts this step of the order is a go.

    The leader decides as late as it can and tells the others.
    That the members have met is the go for the first step; but a batch may have lost some of its requests.
    """
    parts = job.order.parts
    if step == 0 and len(parts) == 1:
        return [0]
    if not group.leads:
        return [int(index) for index in group.read(f"step {step}", DECISION_TIMEOUT_S).split()]
    going = [index for index, part in enumerate(parts) if part.request_id not in job.dropped]
    if job.halt is not Halt.NONE:
        going = []
    if group.degree > 1:
        group.publish(f"step {step}", " ".join(map(str, going)).encode())
    return going


def _only(job: Job) -> pb.Part:
    """What the order is to its only request."""
    if len(job.order.parts) != 1:
        raise ValueError(
            f"only denoising steps run as a batch, and this order has {len(job.order.parts)} parts"
        )
    return job.order.parts[0]


def _image(part: pb.Part) -> ImageSpec:
    spec = part.image
    guidance = spec.guidance if spec.HasField("guidance") else None
    return ImageSpec(
        spec.prompt,
        spec.width,
        spec.height,
        spec.steps,
        spec.seed,
        guidance,
        spec.negative_prompt,
        spec.lora,
        spec.lora_scale if spec.HasField("lora_scale") else 1.0,
    )


def _fail(done: pb.OrderDone, error: Exception) -> None:
    """Say in the report how the order has failed."""
    done.error = str(error) or type(error).__name__
    match error:
        case CalledOff():
            done.outcome = pb.OUTCOME_RETURNED
        case GroupAborted():
            done.outcome = pb.OUTCOME_ABORTED
            done.lost_slots.extend(error.lost)
        case StateMissing():
            done.outcome = pb.OUTCOME_ABORTED
        case _:
            done.outcome = pb.OUTCOME_ERROR
            done.error = f"{type(error).__name__}: {error}"
            # What is wrong with a request needs no traceback; what is wrong with us does.
            if not isinstance(error, ValueError):
                log.exception("order failed", order=done.order_id)


def _log(job: Job, done: pb.OrderDone, encodings: Encodings) -> None:
    order = job.order
    fields: dict[str, object] = {
        "order": order.id,
        "stage": types.Stage.Name(order.stage).removeprefix("STAGE_").lower(),
        "degree": len(order.group.members),
        "outcome": pb.Outcome.Name(done.outcome).removeprefix("OUTCOME_").lower(),
        "held": [state.step for state in done.held],
        "seconds": done.seconds,
    }
    if order.stage == types.STAGE_ENCODING:
        fields |= {"texts_encoded": encodings.misses, "texts_known": encodings.hits}
    if done.error:
        fields["why"] = done.error
    say = log.debug if done.outcome == pb.OUTCOME_OK else log.info
    say("order done", requests=job.request_ids, **fields)
