"""Between the core's plain data and the contract's messages."""

import math
from collections.abc import Iterable

from google.protobuf.timestamp_pb2 import Timestamp

from scheduler.orders import Order, Outcome, Report
from scheduler.problem import EVERY_ROLE, ROLES, Stage
from scheduler.profile import StepTime
from scheduler.tracking import Submission, Tracked
from tetriserve.v1 import executor_pb2, types_pb2

STAGES: dict[Stage | None, types_pb2.Stage] = {
    None: types_pb2.STAGE_UNSPECIFIED,
    Stage.QUEUED: types_pb2.STAGE_QUEUED,
    Stage.ENCODING: types_pb2.STAGE_ENCODING,
    Stage.DENOISING: types_pb2.STAGE_DENOISING,
    Stage.DECODING: types_pb2.STAGE_DECODING,
    Stage.DONE: types_pb2.STAGE_DONE,
    Stage.FAILED: types_pb2.STAGE_FAILED,
    Stage.CANCELLED: types_pb2.STAGE_CANCELLED,
    Stage.DROPPED: types_pb2.STAGE_DROPPED,
}
_ROLES = {STAGES[role]: role for role in ROLES}
_OUTCOMES = {executor_pb2.Outcome.Value(f"OUTCOME_{outcome.name}"): outcome for outcome in Outcome}
_KINDS = {
    "step": executor_pb2.StepTime.KIND_STEP,
    "encode": executor_pb2.StepTime.KIND_ENCODE,
    "decode": executor_pb2.StepTime.KIND_DECODE,
    "layer": executor_pb2.StepTime.KIND_LAYER,
}
_KIND_NAMES = {number: name for name, number in _KINDS.items()}


def timestamp(seconds: float) -> Timestamp:
    """A point of time on the scheduler's clock (Unix time)."""
    message = Timestamp()
    message.FromNanoseconds(round(seconds * 1e9))
    return message


def submission(request: types_pb2.Request) -> Submission:
    """What planning needs to know of a request that has been checked."""
    return Submission(
        id=request.id,
        width=request.image.width,
        height=request.image.height,
        steps=request.image.steps,
        deadline_s=request.deadline.ToNanoseconds() / 1e9 if request.HasField("deadline") else None,
        weight=request.weight if request.HasField("weight") else 1.0,
        lora=_lora(request.image),
        drop_late={types_pb2.ON_LATE_RUN: False, types_pb2.ON_LATE_DROP: True}.get(request.on_late),
    )


def _lora(image: types_pb2.ImageSpec) -> str:
    scale = image.lora_scale if image.HasField("lora_scale") else 1.0
    return f"{image.lora}:{scale}" if image.lora else ""


def status(
    tracked: Tracked, request: types_pb2.Request, warnings: Iterable[str], spans: bool
) -> types_pb2.RequestStatus:
    """A request and what has become of it."""
    message = types_pb2.RequestStatus(
        request=request,
        stage=STAGES[tracked.stage],
        steps_done=tracked.steps_done,
        slots=tracked.slots,
        submitted_at=timestamp(tracked.arrived_at),
        verdict=_verdict(tracked),
        error=tracked.error,
        warnings=warnings,
        gpu_seconds=tracked.gpu_seconds,
        promised=tracked.promised,
    )
    if tracked.deadline < math.inf:
        message.deadline_at.CopyFrom(timestamp(tracked.deadline))
    if not math.isnan(tracked.finished_at):
        message.finished_at.CopyFrom(timestamp(tracked.finished_at))
    for span in tracked.spans if spans else ():
        ended = None if math.isnan(span.end) else timestamp(span.end)
        message.spans.add(
            stage=STAGES[span.stage],
            slots=span.slots,
            first_step=span.first_step,
            steps=span.steps,
            begin=timestamp(span.begin),
            end=ended,
            batch=span.batch,
        )
    return message


def _verdict(tracked: Tracked) -> types_pb2.Verdict:
    if tracked.late:
        return types_pb2.VERDICT_LATE
    if tracked.stage is Stage.DONE:
        return types_pb2.VERDICT_ON_TIME
    return types_pb2.VERDICT_UNSPECIFIED


def order(
    given: Order, members: Iterable[executor_pb2.Member], parts: Iterable[executor_pb2.Part]
) -> executor_pb2.Order:
    """An order of the core as executors read it; `members` leader first."""
    return executor_pb2.Order(
        id=given.id,
        stage=STAGES[given.stage],
        group=executor_pb2.Group(epoch=given.epoch, members=members),
        steps=given.steps,
        parts=parts,
        yields=given.yields,
    )


def roles(registration: executor_pb2.Registration) -> frozenset[Stage]:
    """Stages that the executor takes orders for. Raises ValueError where one of them is no such stage."""
    named = frozenset(_ROLES.get(number) for number in registration.roles)
    if None in named:
        raise ValueError(f"roles: {list(registration.roles)} are not encoding, denoising or decoding")
    return frozenset(role for role in named if role) or EVERY_ROLE


def report(slot: int, done: executor_pb2.OrderDone) -> Report:
    """How an order ended on a slot; an outcome that is not set counts as an error."""
    outcome = _OUTCOMES.get(done.outcome, Outcome.ERROR)
    held = {state.request_id: state.step for state in done.held}
    return Report(slot, outcome, held, done.seconds, done.error)


def step_times(messages: Iterable[executor_pb2.StepTime], source: str) -> list[StepTime]:
    """Measured entries of the profile. Raises ValueError where one makes no sense."""
    return [
        StepTime(
            _KIND_NAMES.get(m.kind, ""),
            m.width,
            m.height,
            m.degree,
            m.batch,
            m.seconds,
            m.cv,
            "measured",
            source,
        )
        for m in messages
    ]


def to_measure(entries: Iterable[StepTime], degree: int) -> list[executor_pb2.StepTime]:
    """Which step times to measure at `degree`: those of the sizes and batches known at degree 1."""
    return [
        executor_pb2.StepTime(
            kind=executor_pb2.StepTime.KIND_STEP, width=e.width, height=e.height, degree=degree, batch=e.batch
        )
        for e in entries
        if e.kind == "step" and e.degree == 1
    ]
