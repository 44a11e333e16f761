import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Stage(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STAGE_UNSPECIFIED: _ClassVar[Stage]
    STAGE_QUEUED: _ClassVar[Stage]
    STAGE_ENCODING: _ClassVar[Stage]
    STAGE_DENOISING: _ClassVar[Stage]
    STAGE_DECODING: _ClassVar[Stage]
    STAGE_DONE: _ClassVar[Stage]
    STAGE_FAILED: _ClassVar[Stage]
    STAGE_CANCELLED: _ClassVar[Stage]
    STAGE_DROPPED: _ClassVar[Stage]

class OnLate(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ON_LATE_UNSPECIFIED: _ClassVar[OnLate]
    ON_LATE_RUN: _ClassVar[OnLate]
    ON_LATE_DROP: _ClassVar[OnLate]

class Verdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VERDICT_UNSPECIFIED: _ClassVar[Verdict]
    VERDICT_ON_TIME: _ClassVar[Verdict]
    VERDICT_LATE: _ClassVar[Verdict]
STAGE_UNSPECIFIED: Stage
STAGE_QUEUED: Stage
STAGE_ENCODING: Stage
STAGE_DENOISING: Stage
STAGE_DECODING: Stage
STAGE_DONE: Stage
STAGE_FAILED: Stage
STAGE_CANCELLED: Stage
STAGE_DROPPED: Stage
ON_LATE_UNSPECIFIED: OnLate
ON_LATE_RUN: OnLate
ON_LATE_DROP: OnLate
VERDICT_UNSPECIFIED: Verdict
VERDICT_ON_TIME: Verdict
VERDICT_LATE: Verdict

class ImageSpec(_message.Message):
    __slots__ = ("prompt", "width", "height", "steps", "seed", "guidance", "negative_prompt", "lora", "lora_scale")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_FIELD_NUMBER: _ClassVar[int]
    NEGATIVE_PROMPT_FIELD_NUMBER: _ClassVar[int]
    LORA_FIELD_NUMBER: _ClassVar[int]
    LORA_SCALE_FIELD_NUMBER: _ClassVar[int]
    prompt: str
    width: int
    height: int
    steps: int
    seed: int
    guidance: float
    negative_prompt: str
    lora: str
    lora_scale: float
    def __init__(self, prompt: _Optional[str] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., steps: _Optional[int] = ..., seed: _Optional[int] = ..., guidance: _Optional[float] = ..., negative_prompt: _Optional[str] = ..., lora: _Optional[str] = ..., lora_scale: _Optional[float] = ...) -> None: ...

class Request(_message.Message):
    __slots__ = ("id", "image", "deadline", "weight", "on_late", "unpromised")
    ID_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    ON_LATE_FIELD_NUMBER: _ClassVar[int]
    UNPROMISED_FIELD_NUMBER: _ClassVar[int]
    id: str
    image: ImageSpec
    deadline: _duration_pb2.Duration
    weight: float
    on_late: OnLate
    unpromised: bool
    def __init__(self, id: _Optional[str] = ..., image: _Optional[_Union[ImageSpec, _Mapping]] = ..., deadline: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., weight: _Optional[float] = ..., on_late: _Optional[_Union[OnLate, str]] = ..., unpromised: _Optional[bool] = ...) -> None: ...

class Span(_message.Message):
    __slots__ = ("stage", "slots", "first_step", "steps", "begin", "end", "batch")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    FIRST_STEP_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    stage: Stage
    slots: _containers.RepeatedScalarFieldContainer[int]
    first_step: int
    steps: int
    begin: _timestamp_pb2.Timestamp
    end: _timestamp_pb2.Timestamp
    batch: int
    def __init__(self, stage: _Optional[_Union[Stage, str]] = ..., slots: _Optional[_Iterable[int]] = ..., first_step: _Optional[int] = ..., steps: _Optional[int] = ..., begin: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., batch: _Optional[int] = ...) -> None: ...

class RequestStatus(_message.Message):
    __slots__ = ("request", "stage", "steps_done", "slots", "submitted_at", "deadline_at", "finished_at", "verdict", "error", "warnings", "gpu_seconds", "spans", "promised")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    STEPS_DONE_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    SUBMITTED_AT_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_AT_FIELD_NUMBER: _ClassVar[int]
    FINISHED_AT_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    GPU_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SPANS_FIELD_NUMBER: _ClassVar[int]
    PROMISED_FIELD_NUMBER: _ClassVar[int]
    request: Request
    stage: Stage
    steps_done: int
    slots: _containers.RepeatedScalarFieldContainer[int]
    submitted_at: _timestamp_pb2.Timestamp
    deadline_at: _timestamp_pb2.Timestamp
    finished_at: _timestamp_pb2.Timestamp
    verdict: Verdict
    error: str
    warnings: _containers.RepeatedScalarFieldContainer[str]
    gpu_seconds: float
    spans: _containers.RepeatedCompositeFieldContainer[Span]
    promised: bool
    def __init__(self, request: _Optional[_Union[Request, _Mapping]] = ..., stage: _Optional[_Union[Stage, str]] = ..., steps_done: _Optional[int] = ..., slots: _Optional[_Iterable[int]] = ..., submitted_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., deadline_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., finished_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., verdict: _Optional[_Union[Verdict, str]] = ..., error: _Optional[str] = ..., warnings: _Optional[_Iterable[str]] = ..., gpu_seconds: _Optional[float] = ..., spans: _Optional[_Iterable[_Union[Span, _Mapping]]] = ..., promised: _Optional[bool] = ...) -> None: ...
