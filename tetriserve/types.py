"""What the client takes and gives: plain data, no protobuf. The words are those of the contract."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum


class Stage(StrEnum):
    """Where a request is in its life."""

    QUEUED = "queued"
    ENCODING = "encoding"
    DENOISING = "denoising"
    DECODING = "decoding"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    DROPPED = "dropped"
    UNKNOWN = "unknown"
    """A stage that a newer scheduler knows and this client does not."""


ENDED = frozenset({Stage.DONE, Stage.FAILED, Stage.CANCELLED, Stage.DROPPED})


class OnLate(StrEnum):
    """What becomes of a request that can no longer meet its deadline."""

    DEFAULT = "default"
    """As the scheduler is configured."""
    RUN = "run"
    """Finish it, late."""
    DROP = "drop"
    """End it: its GPUs serve the others."""


class Verdict(StrEnum):
    """A request against its deadline."""

    OPEN = "open"
    """It can still be met or missed."""
    ON_TIME = "on_time"
    """Done by the deadline, or done and without one."""
    LATE = "late"
    """Missed, or certain to be missed."""


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """All that decides the picture: the same spec gives the same picture."""

    prompt: str
    width: int
    """Pixels."""
    height: int
    """Pixels."""
    steps: int
    """Denoising steps."""
    seed: int = 0
    """Seed of the initial noise."""
    guidance: float | None = None
    """None: the model's default."""
    negative_prompt: str = ""
    """What not to draw."""
    lora: str = ""
    """Name of a LoRA adapter; empty: none."""
    lora_scale: float = 1.0
    """How much of it is added."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks for."""

    id: str
    image: ImageSpec
    deadline: float | None = None
    """Seconds from submission to the finished image; None: best effort."""
    weight: float = 1.0
    """What meeting the deadline is worth against others."""
    on_late: OnLate = OnLate.DEFAULT
    unpromised: bool = False
    """Where deadlines are promised: be content without, if this one cannot be."""


@dataclass(frozen=True, slots=True)
class Span:
    """One order as it ran."""

    stage: Stage
    slots: tuple[int, ...]
    """The executors that ran it."""
    first_step: int
    """The first denoising step, counted from 0."""
    steps: int
    """Denoising steps that ran."""
    begin: datetime
    end: datetime | None
    """None while it runs."""
    batch: int = 1
    """How many requests shared its steps, this one included."""

    @property
    def degree(self) -> int:
        """How many executors ran it together."""
        return len(self.slots)


@dataclass(frozen=True, slots=True)
class RequestStatus:
    """A request and what has become of it. Times are the scheduler's, in UTC."""

    request: Request
    stage: Stage
    steps_done: int
    """Denoising steps finished."""
    slots: tuple[int, ...]
    """The executors that it runs on now."""
    submitted_at: datetime
    deadline_at: datetime | None
    """None: best effort."""
    finished_at: datetime | None
    """When it ended, well or not."""
    verdict: Verdict
    error: str = ""
    """Why it failed or was dropped."""
    warnings: tuple[str, ...] = ()
    """E.g. a prompt that was cut."""
    gpu_seconds: float = 0.0
    """Device time spent on it, over all GPUs."""
    spans: tuple[Span, ...] = field(default=())
    """What ran where; only `get`, `wait` and `submit` have it, `watch` and `list` leave it out."""

    promised: bool = False
    """The scheduler keeps the deadline, whatever else is submitted."""

    @property
    def id(self) -> str:
        """The request's id."""
        return self.request.id

    @property
    def degree(self) -> int:
        """How many executors it runs on now; 0 while it waits."""
        return len(self.slots)

    @property
    def ended(self) -> bool:
        """Whether nothing more will become of it."""
        return self.stage in ENDED

    @property
    def latency(self) -> float | None:
        """Seconds from submission to its end; None while it has not ended."""
        return (self.finished_at - self.submitted_at).total_seconds() if self.finished_at else None

    @property
    def degrees(self) -> tuple[int, ...]:
        """Degrees that its denoising steps ran at, in order, repeats left out. Needs `spans`."""
        degrees = [span.degree for span in self.spans if span.stage is Stage.DENOISING]
        return tuple(k for i, k in enumerate(degrees) if i == 0 or k != degrees[i - 1])


@dataclass(frozen=True, slots=True)
class Preview:
    """What a picture will be like, small and rough."""

    step: int
    """Denoising steps behind it."""
    jpeg: bytes


@dataclass(frozen=True, slots=True)
class Event:
    """A change of a request."""

    at: datetime
    """When it happened, by the scheduler's clock."""
    status: RequestStatus
    preview: Preview | None = None
    """A new one, where previews were asked for."""

    @property
    def time_left(self) -> timedelta | None:
        """From the event to the deadline, negative once it is missed; None: best effort."""
        return self.status.deadline_at - self.at if self.status.deadline_at else None


@dataclass(frozen=True, slots=True)
class Quote:
    """When an image could be done; an estimate, not a promise."""

    earliest: float
    """The earliest deadline that would be met if it were submitted now, in seconds from now."""
    alone: float
    """The same on an idle cluster."""
    gpu_seconds: float
    """Device time at the cheapest degree."""


@dataclass(frozen=True, slots=True)
class Executor:
    """One executor as the scheduler sees it."""

    slot: int
    """Its place in the cluster, from 0."""
    address: str
    node: str
    """The host it runs on."""
    device: str
    """E.g. "cpu" or "NVIDIA H100 80GB HBM3"."""
    request_ids: tuple[str, ...]
    """What it runs now, several as a batch; empty: idle."""
    stage: Stage | None
    """The stage of those requests."""
    degree: int
    """Degree of the group it runs in; 0: idle."""
    orders: int
    """Orders given and not finished, the running one included."""
    busy_seconds: float
    """Device time spent since it joined."""
    roles: tuple[Stage, ...] = ()
    """Stages that it takes orders for."""


@dataclass(frozen=True, slots=True)
class Model:
    """What the executors can make."""

    family: str
    """E.g. "flux"."""
    name: str
    size_multiple: int
    """Width and height are multiples of this."""
    max_side: int
    """Largest width or height, in pixels."""
    max_pixels: int
    """Largest width x height."""
    max_steps: int
    default_steps: int
    max_prompt_tokens: int
    """Tokens of the prompt that the text encoder reads; the rest is cut."""
    fingerprint: str
    """Hash of the configuration."""
    loras: tuple[str, ...] = ()
    """LoRA adapters that requests can name."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """The executors, the queue and the policy."""

    executors: tuple[Executor, ...]
    policy: str
    policies: tuple[str, ...]
    """Those that `set_policy` takes."""
    outstanding: int
    """Requests that have not ended."""
    queue_limit: int
    """The most that may be outstanding."""
    model: Model | None
    """None until an executor has joined."""
    rounds: int
    """Rounds planned so far."""
    expected_executors: int
    """Executors that work waits for; 0: none."""
    ready: bool
    """Whether work can run."""
    admission: str = "accept"
    """Which requests are let in: accept, reject-late or promise."""
    warnings: tuple[str, ...] = ()
    """What keeps requests waiting, e.g. a stage that no executor can run."""
