"""Between the contract's messages and the client's plain data."""

import math
from datetime import UTC, datetime

from google.protobuf.duration_pb2 import Duration as DurationMessage
from google.protobuf.timestamp_pb2 import Timestamp

from tetriserve.errors import InvalidArgument
from tetriserve.types import (
    Cluster,
    Event,
    Executor,
    ImageSpec,
    Model,
    OnLate,
    Preview,
    Quote,
    Request,
    RequestStatus,
    Span,
    Stage,
    Verdict,
)
from tetriserve.v1 import scheduler_pb2, types_pb2

_STAGES = {
    types_pb2.STAGE_QUEUED: Stage.QUEUED,
    types_pb2.STAGE_ENCODING: Stage.ENCODING,
    types_pb2.STAGE_DENOISING: Stage.DENOISING,
    types_pb2.STAGE_DECODING: Stage.DECODING,
    types_pb2.STAGE_DONE: Stage.DONE,
    types_pb2.STAGE_FAILED: Stage.FAILED,
    types_pb2.STAGE_CANCELLED: Stage.CANCELLED,
    types_pb2.STAGE_DROPPED: Stage.DROPPED,
}
_STAGE_NUMBERS = {stage: number for number, stage in _STAGES.items()}
_ON_LATE = {
    types_pb2.ON_LATE_UNSPECIFIED: OnLate.DEFAULT,
    types_pb2.ON_LATE_RUN: OnLate.RUN,
    types_pb2.ON_LATE_DROP: OnLate.DROP,
}
_ON_LATE_NUMBERS = {choice: number for number, choice in _ON_LATE.items()}
_VERDICTS = {types_pb2.VERDICT_ON_TIME: Verdict.ON_TIME, types_pb2.VERDICT_LATE: Verdict.LATE}


def image_to_proto(image: ImageSpec) -> types_pb2.ImageSpec:
    """Raises InvalidArgument where a value does not fit; the model's own limits are the scheduler's."""
    for name, value, limit in (
        ("width", image.width, 2**31),
        ("height", image.height, 2**31),
        ("steps", image.steps, 2**31),
        ("seed", image.seed, 2**64),
    ):
        if not 0 <= value < limit:
            raise InvalidArgument(f"{name}: {value} is not between 0 and {limit - 1}")
    texts = (("prompt", image.prompt), ("negative_prompt", image.negative_prompt), ("lora", image.lora))
    for name, text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InvalidArgument(f"{name}: {text!r:.80} is not valid Unicode") from None
    if image.guidance is not None and not math.isfinite(image.guidance):
        raise InvalidArgument(f"guidance: {image.guidance} is not a number")
    if not math.isfinite(image.lora_scale):
        raise InvalidArgument(f"lora: its scale {image.lora_scale} is not a number")
    return types_pb2.ImageSpec(
        prompt=image.prompt,
        width=image.width,
        height=image.height,
        steps=image.steps,
        seed=image.seed,
        guidance=image.guidance,
        negative_prompt=image.negative_prompt,
        lora=image.lora,
        lora_scale=image.lora_scale if image.lora else None,
    )


def request_to_proto(request: Request) -> types_pb2.Request:
    """Raises InvalidArgument where a value does not fit into the message."""
    if not 0 < request.weight < math.inf:
        raise InvalidArgument(f"weight: {request.weight} is not more than 0")
    message = types_pb2.Request(
        id=request.id,
        image=image_to_proto(request.image),
        weight=request.weight,
        on_late=_ON_LATE_NUMBERS[request.on_late],
        unpromised=request.unpromised,
    )
    if request.deadline is not None:
        message.deadline.FromNanoseconds(round(request.deadline * 1e9))
    return message


def stage_to_proto(stage: Stage) -> types_pb2.Stage:
    """Raises InvalidArgument for UNKNOWN."""
    if stage not in _STAGE_NUMBERS:
        raise InvalidArgument(f"stages: {stage} is not one of {', '.join(_STAGE_NUMBERS)}")
    return _STAGE_NUMBERS[stage]


def status_from_proto(message: types_pb2.RequestStatus) -> RequestStatus:
    """Times become aware, in UTC."""
    return RequestStatus(
        request=_request(message.request),
        stage=_STAGES.get(message.stage, Stage.UNKNOWN),
        steps_done=message.steps_done,
        slots=tuple(message.slots),
        submitted_at=_time(message.submitted_at),
        deadline_at=_time(message.deadline_at) if message.HasField("deadline_at") else None,
        finished_at=_time(message.finished_at) if message.HasField("finished_at") else None,
        verdict=_VERDICTS.get(message.verdict, Verdict.OPEN),
        error=message.error,
        warnings=tuple(message.warnings),
        gpu_seconds=message.gpu_seconds,
        spans=tuple(_span(span) for span in message.spans),
        promised=message.promised,
    )


def event_from_proto(message: scheduler_pb2.WatchResponse) -> Event:
    preview = Preview(message.preview.step, message.preview.jpeg) if message.HasField("preview") else None
    return Event(at=_time(message.at), status=status_from_proto(message.status), preview=preview)


def quote_from_proto(message: scheduler_pb2.QuoteResponse) -> Quote:
    return Quote(
        earliest=_seconds(message.earliest), alone=_seconds(message.alone), gpu_seconds=message.gpu_seconds
    )


def cluster_from_proto(message: scheduler_pb2.GetClusterResponse) -> Cluster:
    return Cluster(
        executors=tuple(_executor(executor) for executor in message.executors),
        policy=message.policy,
        policies=tuple(message.policies),
        outstanding=message.outstanding,
        queue_limit=message.queue_limit,
        model=_model(message.model) if message.HasField("model") else None,
        rounds=message.rounds,
        expected_executors=message.expected_executors,
        ready=message.ready,
        warnings=tuple(message.warnings),
        admission=message.admission or "accept",
    )


def _request(message: types_pb2.Request) -> Request:
    image = message.image
    return Request(
        id=message.id,
        image=ImageSpec(
            prompt=image.prompt,
            width=image.width,
            height=image.height,
            steps=image.steps,
            seed=image.seed,
            guidance=image.guidance if image.HasField("guidance") else None,
            negative_prompt=image.negative_prompt,
            lora=image.lora,
            lora_scale=image.lora_scale if image.HasField("lora_scale") else 1.0,
        ),
        deadline=_seconds(message.deadline) if message.HasField("deadline") else None,
        weight=message.weight if message.HasField("weight") else 1.0,
        on_late=_ON_LATE.get(message.on_late, OnLate.DEFAULT),
        unpromised=message.unpromised,
    )


def _span(message: types_pb2.Span) -> Span:
    return Span(
        stage=_STAGES.get(message.stage, Stage.UNKNOWN),
        slots=tuple(message.slots),
        first_step=message.first_step,
        steps=message.steps,
        begin=_time(message.begin),
        end=_time(message.end) if message.HasField("end") else None,
        batch=message.batch or 1,
    )


def _executor(message: scheduler_pb2.ExecutorStatus) -> Executor:
    return Executor(
        slot=message.slot,
        address=message.address,
        node=message.node,
        device=message.device,
        request_ids=tuple(message.request_ids),
        stage=_STAGES.get(message.stage, Stage.UNKNOWN) if message.stage else None,
        degree=message.degree,
        orders=message.orders,
        busy_seconds=message.busy_seconds,
        roles=tuple(_STAGES.get(role, Stage.UNKNOWN) for role in message.roles),
    )


def _model(message: scheduler_pb2.ModelInfo) -> Model:
    return Model(
        family=message.family,
        name=message.name,
        size_multiple=message.size_multiple,
        max_side=message.max_side,
        max_pixels=message.max_pixels,
        max_steps=message.max_steps,
        default_steps=message.default_steps,
        max_prompt_tokens=message.max_prompt_tokens,
        fingerprint=message.fingerprint,
        loras=tuple(message.loras),
    )


def _time(message: Timestamp) -> datetime:
    return message.ToDatetime(tzinfo=UTC)


def _seconds(message: DurationMessage) -> float:
    return message.ToNanoseconds() / 1e9
