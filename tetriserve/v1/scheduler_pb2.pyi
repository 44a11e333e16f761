import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from tetriserve.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SubmitRequest(_message.Message):
    __slots__ = ("request",)
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    request: _types_pb2.Request
    def __init__(self, request: _Optional[_Union[_types_pb2.Request, _Mapping]] = ...) -> None: ...

class SubmitResponse(_message.Message):
    __slots__ = ("status",)
    STATUS_FIELD_NUMBER: _ClassVar[int]
    status: _types_pb2.RequestStatus
    def __init__(self, status: _Optional[_Union[_types_pb2.RequestStatus, _Mapping]] = ...) -> None: ...

class QuoteRequest(_message.Message):
    __slots__ = ("image",)
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    image: _types_pb2.ImageSpec
    def __init__(self, image: _Optional[_Union[_types_pb2.ImageSpec, _Mapping]] = ...) -> None: ...

class QuoteResponse(_message.Message):
    __slots__ = ("earliest", "alone", "gpu_seconds")
    EARLIEST_FIELD_NUMBER: _ClassVar[int]
    ALONE_FIELD_NUMBER: _ClassVar[int]
    GPU_SECONDS_FIELD_NUMBER: _ClassVar[int]
    earliest: _duration_pb2.Duration
    alone: _duration_pb2.Duration
    gpu_seconds: float
    def __init__(self, earliest: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., alone: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., gpu_seconds: _Optional[float] = ...) -> None: ...

class GetRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class GetResponse(_message.Message):
    __slots__ = ("status",)
    STATUS_FIELD_NUMBER: _ClassVar[int]
    status: _types_pb2.RequestStatus
    def __init__(self, status: _Optional[_Union[_types_pb2.RequestStatus, _Mapping]] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "stages")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    stages: _containers.RepeatedScalarFieldContainer[_types_pb2.Stage]
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., stages: _Optional[_Iterable[_Union[_types_pb2.Stage, str]]] = ...) -> None: ...

class ListResponse(_message.Message):
    __slots__ = ("statuses", "next_page_token")
    STATUSES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    statuses: _containers.RepeatedCompositeFieldContainer[_types_pb2.RequestStatus]
    next_page_token: str
    def __init__(self, statuses: _Optional[_Iterable[_Union[_types_pb2.RequestStatus, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("id", "preview_every")
    ID_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_EVERY_FIELD_NUMBER: _ClassVar[int]
    id: str
    preview_every: int
    def __init__(self, id: _Optional[str] = ..., preview_every: _Optional[int] = ...) -> None: ...

class WatchResponse(_message.Message):
    __slots__ = ("at", "status", "preview")
    AT_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_FIELD_NUMBER: _ClassVar[int]
    at: _timestamp_pb2.Timestamp
    status: _types_pb2.RequestStatus
    preview: Preview
    def __init__(self, at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., status: _Optional[_Union[_types_pb2.RequestStatus, _Mapping]] = ..., preview: _Optional[_Union[Preview, _Mapping]] = ...) -> None: ...

class Preview(_message.Message):
    __slots__ = ("step", "jpeg")
    STEP_FIELD_NUMBER: _ClassVar[int]
    JPEG_FIELD_NUMBER: _ClassVar[int]
    step: int
    jpeg: bytes
    def __init__(self, step: _Optional[int] = ..., jpeg: _Optional[bytes] = ...) -> None: ...

class CancelRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class CancelResponse(_message.Message):
    __slots__ = ("status",)
    STATUS_FIELD_NUMBER: _ClassVar[int]
    status: _types_pb2.RequestStatus
    def __init__(self, status: _Optional[_Union[_types_pb2.RequestStatus, _Mapping]] = ...) -> None: ...

class GetImageRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class GetImageResponse(_message.Message):
    __slots__ = ("chunk", "total_bytes")
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    chunk: bytes
    total_bytes: int
    def __init__(self, chunk: _Optional[bytes] = ..., total_bytes: _Optional[int] = ...) -> None: ...

class GetClusterRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetClusterResponse(_message.Message):
    __slots__ = ("executors", "policy", "policies", "outstanding", "queue_limit", "model", "rounds", "expected_executors", "ready", "warnings", "admission")
    EXECUTORS_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    POLICIES_FIELD_NUMBER: _ClassVar[int]
    OUTSTANDING_FIELD_NUMBER: _ClassVar[int]
    QUEUE_LIMIT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_EXECUTORS_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    ADMISSION_FIELD_NUMBER: _ClassVar[int]
    executors: _containers.RepeatedCompositeFieldContainer[ExecutorStatus]
    policy: str
    policies: _containers.RepeatedScalarFieldContainer[str]
    outstanding: int
    queue_limit: int
    model: ModelInfo
    rounds: int
    expected_executors: int
    ready: bool
    warnings: _containers.RepeatedScalarFieldContainer[str]
    admission: str
    def __init__(self, executors: _Optional[_Iterable[_Union[ExecutorStatus, _Mapping]]] = ..., policy: _Optional[str] = ..., policies: _Optional[_Iterable[str]] = ..., outstanding: _Optional[int] = ..., queue_limit: _Optional[int] = ..., model: _Optional[_Union[ModelInfo, _Mapping]] = ..., rounds: _Optional[int] = ..., expected_executors: _Optional[int] = ..., ready: _Optional[bool] = ..., warnings: _Optional[_Iterable[str]] = ..., admission: _Optional[str] = ...) -> None: ...

class ExecutorStatus(_message.Message):
    __slots__ = ("slot", "address", "node", "device", "request_ids", "stage", "degree", "orders", "busy_seconds", "roles")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_IDS_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    DEGREE_FIELD_NUMBER: _ClassVar[int]
    ORDERS_FIELD_NUMBER: _ClassVar[int]
    BUSY_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ROLES_FIELD_NUMBER: _ClassVar[int]
    slot: int
    address: str
    node: str
    device: str
    request_ids: _containers.RepeatedScalarFieldContainer[str]
    stage: _types_pb2.Stage
    degree: int
    orders: int
    busy_seconds: float
    roles: _containers.RepeatedScalarFieldContainer[_types_pb2.Stage]
    def __init__(self, slot: _Optional[int] = ..., address: _Optional[str] = ..., node: _Optional[str] = ..., device: _Optional[str] = ..., request_ids: _Optional[_Iterable[str]] = ..., stage: _Optional[_Union[_types_pb2.Stage, str]] = ..., degree: _Optional[int] = ..., orders: _Optional[int] = ..., busy_seconds: _Optional[float] = ..., roles: _Optional[_Iterable[_Union[_types_pb2.Stage, str]]] = ...) -> None: ...

class ModelInfo(_message.Message):
    __slots__ = ("family", "name", "size_multiple", "max_side", "max_steps", "default_steps", "max_prompt_tokens", "fingerprint", "max_pixels", "loras", "step_cache")
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_MULTIPLE_FIELD_NUMBER: _ClassVar[int]
    MAX_SIDE_FIELD_NUMBER: _ClassVar[int]
    MAX_STEPS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_STEPS_FIELD_NUMBER: _ClassVar[int]
    MAX_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    MAX_PIXELS_FIELD_NUMBER: _ClassVar[int]
    LORAS_FIELD_NUMBER: _ClassVar[int]
    STEP_CACHE_FIELD_NUMBER: _ClassVar[int]
    family: str
    name: str
    size_multiple: int
    max_side: int
    max_steps: int
    default_steps: int
    max_prompt_tokens: int
    fingerprint: str
    max_pixels: int
    loras: _containers.RepeatedScalarFieldContainer[str]
    step_cache: int
    def __init__(self, family: _Optional[str] = ..., name: _Optional[str] = ..., size_multiple: _Optional[int] = ..., max_side: _Optional[int] = ..., max_steps: _Optional[int] = ..., default_steps: _Optional[int] = ..., max_prompt_tokens: _Optional[int] = ..., fingerprint: _Optional[str] = ..., max_pixels: _Optional[int] = ..., loras: _Optional[_Iterable[str]] = ..., step_cache: _Optional[int] = ...) -> None: ...

class SetPolicyRequest(_message.Message):
    __slots__ = ("policy",)
    POLICY_FIELD_NUMBER: _ClassVar[int]
    policy: str
    def __init__(self, policy: _Optional[str] = ...) -> None: ...

class SetPolicyResponse(_message.Message):
    __slots__ = ("policy",)
    POLICY_FIELD_NUMBER: _ClassVar[int]
    policy: str
    def __init__(self, policy: _Optional[str] = ...) -> None: ...
