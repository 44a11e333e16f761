import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from tetriserve.v1 import scheduler_pb2 as _scheduler_pb2
from tetriserve.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTCOME_UNSPECIFIED: _ClassVar[Outcome]
    OUTCOME_OK: _ClassVar[Outcome]
    OUTCOME_ERROR: _ClassVar[Outcome]
    OUTCOME_ABORTED: _ClassVar[Outcome]
    OUTCOME_RETURNED: _ClassVar[Outcome]
OUTCOME_UNSPECIFIED: Outcome
OUTCOME_OK: Outcome
OUTCOME_ERROR: Outcome
OUTCOME_ABORTED: Outcome
OUTCOME_RETURNED: Outcome

class JoinRequest(_message.Message):
    __slots__ = ("registration", "heartbeat", "step_done", "order_done", "leaving")
    REGISTRATION_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    STEP_DONE_FIELD_NUMBER: _ClassVar[int]
    ORDER_DONE_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    registration: Registration
    heartbeat: Heartbeat
    step_done: StepDone
    order_done: OrderDone
    leaving: Leaving
    def __init__(self, registration: _Optional[_Union[Registration, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., step_done: _Optional[_Union[StepDone, _Mapping]] = ..., order_done: _Optional[_Union[OrderDone, _Mapping]] = ..., leaving: _Optional[_Union[Leaving, _Mapping]] = ...) -> None: ...

class JoinResponse(_message.Message):
    __slots__ = ("welcome", "order", "truncate", "release", "abort_groups")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    ABORT_GROUPS_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    order: Order
    truncate: Truncate
    release: Release
    abort_groups: AbortGroups
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., order: _Optional[_Union[Order, _Mapping]] = ..., truncate: _Optional[_Union[Truncate, _Mapping]] = ..., release: _Optional[_Union[Release, _Mapping]] = ..., abort_groups: _Optional[_Union[AbortGroups, _Mapping]] = ...) -> None: ...

class Registration(_message.Message):
    __slots__ = ("instance", "address", "store", "node", "device", "model", "step_times", "device_index", "held", "roles", "island")
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    STORE_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    STEP_TIMES_FIELD_NUMBER: _ClassVar[int]
    DEVICE_INDEX_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    ROLES_FIELD_NUMBER: _ClassVar[int]
    ISLAND_FIELD_NUMBER: _ClassVar[int]
    instance: str
    address: str
    store: str
    node: str
    device: str
    model: _scheduler_pb2.ModelInfo
    step_times: _containers.RepeatedCompositeFieldContainer[StepTime]
    device_index: int
    held: _containers.RepeatedCompositeFieldContainer[HeldState]
    roles: _containers.RepeatedScalarFieldContainer[_types_pb2.Stage]
    island: str
    def __init__(self, instance: _Optional[str] = ..., address: _Optional[str] = ..., store: _Optional[str] = ..., node: _Optional[str] = ..., device: _Optional[str] = ..., model: _Optional[_Union[_scheduler_pb2.ModelInfo, _Mapping]] = ..., step_times: _Optional[_Iterable[_Union[StepTime, _Mapping]]] = ..., device_index: _Optional[int] = ..., held: _Optional[_Iterable[_Union[HeldState, _Mapping]]] = ..., roles: _Optional[_Iterable[_Union[_types_pb2.Stage, str]]] = ..., island: _Optional[str] = ...) -> None: ...

class HeldState(_message.Message):
    __slots__ = ("request_id", "step")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    step: int
    def __init__(self, request_id: _Optional[str] = ..., step: _Optional[int] = ...) -> None: ...

class StepTime(_message.Message):
    __slots__ = ("kind", "width", "height", "degree", "batch", "seconds", "cv")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[StepTime.Kind]
        KIND_STEP: _ClassVar[StepTime.Kind]
        KIND_ENCODE: _ClassVar[StepTime.Kind]
        KIND_DECODE: _ClassVar[StepTime.Kind]
        KIND_LAYER: _ClassVar[StepTime.Kind]
    KIND_UNSPECIFIED: StepTime.Kind
    KIND_STEP: StepTime.Kind
    KIND_ENCODE: StepTime.Kind
    KIND_DECODE: StepTime.Kind
    KIND_LAYER: StepTime.Kind
    KIND_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    DEGREE_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    CV_FIELD_NUMBER: _ClassVar[int]
    kind: StepTime.Kind
    width: int
    height: int
    degree: int
    batch: int
    seconds: float
    cv: float
    def __init__(self, kind: _Optional[_Union[StepTime.Kind, str]] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., degree: _Optional[int] = ..., batch: _Optional[int] = ..., seconds: _Optional[float] = ..., cv: _Optional[float] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StepDone(_message.Message):
    __slots__ = ("order_id", "step", "seconds", "batch")
    ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    order_id: int
    step: int
    seconds: float
    batch: int
    def __init__(self, order_id: _Optional[int] = ..., step: _Optional[int] = ..., seconds: _Optional[float] = ..., batch: _Optional[int] = ...) -> None: ...

class OrderDone(_message.Message):
    __slots__ = ("order_id", "outcome", "error", "held", "seconds", "warnings", "step_times", "lost_slots")
    ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    STEP_TIMES_FIELD_NUMBER: _ClassVar[int]
    LOST_SLOTS_FIELD_NUMBER: _ClassVar[int]
    order_id: int
    outcome: Outcome
    error: str
    held: _containers.RepeatedCompositeFieldContainer[HeldState]
    seconds: float
    warnings: _containers.RepeatedScalarFieldContainer[str]
    step_times: _containers.RepeatedCompositeFieldContainer[StepTime]
    lost_slots: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, order_id: _Optional[int] = ..., outcome: _Optional[_Union[Outcome, str]] = ..., error: _Optional[str] = ..., held: _Optional[_Iterable[_Union[HeldState, _Mapping]]] = ..., seconds: _Optional[float] = ..., warnings: _Optional[_Iterable[str]] = ..., step_times: _Optional[_Iterable[_Union[StepTime, _Mapping]]] = ..., lost_slots: _Optional[_Iterable[int]] = ...) -> None: ...

class Leaving(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("slot", "lease", "term")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    slot: int
    lease: _duration_pb2.Duration
    term: str
    def __init__(self, slot: _Optional[int] = ..., lease: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., term: _Optional[str] = ...) -> None: ...

class Member(_message.Message):
    __slots__ = ("slot", "address", "store")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    STORE_FIELD_NUMBER: _ClassVar[int]
    slot: int
    address: str
    store: str
    def __init__(self, slot: _Optional[int] = ..., address: _Optional[str] = ..., store: _Optional[str] = ...) -> None: ...

class Group(_message.Message):
    __slots__ = ("epoch", "members")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    members: _containers.RepeatedCompositeFieldContainer[Member]
    def __init__(self, epoch: _Optional[int] = ..., members: _Optional[_Iterable[_Union[Member, _Mapping]]] = ...) -> None: ...

class Order(_message.Message):
    __slots__ = ("id", "stage", "group", "steps", "parts", "profile", "yields")
    ID_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    YIELDS_FIELD_NUMBER: _ClassVar[int]
    id: int
    stage: _types_pb2.Stage
    group: Group
    steps: int
    parts: _containers.RepeatedCompositeFieldContainer[Part]
    profile: _containers.RepeatedCompositeFieldContainer[StepTime]
    yields: bool
    def __init__(self, id: _Optional[int] = ..., stage: _Optional[_Union[_types_pb2.Stage, str]] = ..., group: _Optional[_Union[Group, _Mapping]] = ..., steps: _Optional[int] = ..., parts: _Optional[_Iterable[_Union[Part, _Mapping]]] = ..., profile: _Optional[_Iterable[_Union[StepTime, _Mapping]]] = ..., yields: _Optional[bool] = ...) -> None: ...

class Part(_message.Message):
    __slots__ = ("request_id", "image", "first_step", "holders", "checkpoint", "preview_every")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    FIRST_STEP_FIELD_NUMBER: _ClassVar[int]
    HOLDERS_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_EVERY_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    image: _types_pb2.ImageSpec
    first_step: int
    holders: _containers.RepeatedScalarFieldContainer[str]
    checkpoint: bytes
    preview_every: int
    def __init__(self, request_id: _Optional[str] = ..., image: _Optional[_Union[_types_pb2.ImageSpec, _Mapping]] = ..., first_step: _Optional[int] = ..., holders: _Optional[_Iterable[str]] = ..., checkpoint: _Optional[bytes] = ..., preview_every: _Optional[int] = ...) -> None: ...

class Truncate(_message.Message):
    __slots__ = ("order_id", "request_id")
    ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    order_id: int
    request_id: str
    def __init__(self, order_id: _Optional[int] = ..., request_id: _Optional[str] = ...) -> None: ...

class Release(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...

class AbortGroups(_message.Message):
    __slots__ = ("epoch", "slots")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    slots: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, epoch: _Optional[int] = ..., slots: _Optional[_Iterable[int]] = ...) -> None: ...

class UploadRequest(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: UploadHeader
    chunk: bytes
    def __init__(self, header: _Optional[_Union[UploadHeader, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class UploadHeader(_message.Message):
    __slots__ = ("kind", "request_id", "order_id", "step")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[UploadHeader.Kind]
        KIND_IMAGE: _ClassVar[UploadHeader.Kind]
        KIND_CHECKPOINT: _ClassVar[UploadHeader.Kind]
        KIND_PREVIEW: _ClassVar[UploadHeader.Kind]
    KIND_UNSPECIFIED: UploadHeader.Kind
    KIND_IMAGE: UploadHeader.Kind
    KIND_CHECKPOINT: UploadHeader.Kind
    KIND_PREVIEW: UploadHeader.Kind
    KIND_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    kind: UploadHeader.Kind
    request_id: str
    order_id: int
    step: int
    def __init__(self, kind: _Optional[_Union[UploadHeader.Kind, str]] = ..., request_id: _Optional[str] = ..., order_id: _Optional[int] = ..., step: _Optional[int] = ...) -> None: ...

class UploadResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FetchStateRequest(_message.Message):
    __slots__ = ("request_id", "step", "order_id")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    step: int
    order_id: int
    def __init__(self, request_id: _Optional[str] = ..., step: _Optional[int] = ..., order_id: _Optional[int] = ...) -> None: ...

class FetchStateResponse(_message.Message):
    __slots__ = ("chunk",)
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    chunk: bytes
    def __init__(self, chunk: _Optional[bytes] = ...) -> None: ...
