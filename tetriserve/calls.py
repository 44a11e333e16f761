"""What the two clients share: the calls as data, and when to try one again.

Every call is harmless to repeat: those that change something name what they change by an id, and
`submit` chooses one where its caller does not.
"""

import hashlib
import math
import random
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from tetriserve import convert
from tetriserve.errors import DeadlineExceeded, InvalidArgument, RequestEnded, RpcError, Unavailable
from tetriserve.quantities import Duration, Size, parse_duration, parse_lora, parse_size
from tetriserve.types import Cluster, Event, ImageSpec, OnLate, Quote, Request, RequestStatus, Stage
from tetriserve.v1 import scheduler_pb2

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One call of SchedulerService: its method, what to send, and how to read the answer.

    Where `streams`, `read` gets the list of all answers.
    """

    method: str
    message: Message
    read: Callable[[Any], T]
    streams: bool = False


def submit(
    prompt: str,
    size: Size,
    steps: int | None,
    seed: int | None,
    deadline: Duration | None,
    weight: float,
    on_late: OnLate | str,
    id: str | None,
    guidance: float | None,
    negative_prompt: str,
    lora: str | None,
    unpromised: bool,
) -> Call[RequestStatus]:
    seed = _seed(id) if seed is None else seed
    image = _image(prompt, size, steps, seed, guidance, negative_prompt, lora)
    request = Request(
        id=id or secrets.token_hex(6),
        image=image,
        deadline=None if deadline is None else parse_duration(deadline),
        weight=weight,
        on_late=_choice(OnLate, on_late, "on_late"),
        unpromised=unpromised,
    )
    message = scheduler_pb2.SubmitRequest(request=convert.request_to_proto(request))
    return Call("Submit", message, lambda answer: convert.status_from_proto(answer.status))


def quote(prompt: str, size: Size, steps: int | None) -> Call[Quote]:
    image = convert.image_to_proto(_image(prompt, size, steps))
    return Call("Quote", scheduler_pb2.QuoteRequest(image=image), convert.quote_from_proto)


def get(id: str) -> Call[RequestStatus]:
    return Call(
        "Get", scheduler_pb2.GetRequest(id=id), lambda answer: convert.status_from_proto(answer.status)
    )


def cancel(id: str) -> Call[RequestStatus]:
    return Call(
        "Cancel", scheduler_pb2.CancelRequest(id=id), lambda answer: convert.status_from_proto(answer.status)
    )


def image(id: str) -> Call[bytes]:
    return Call("GetImage", scheduler_pb2.GetImageRequest(id=id), _join, streams=True)


def cluster() -> Call[Cluster]:
    return Call("GetCluster", scheduler_pb2.GetClusterRequest(), convert.cluster_from_proto)


def set_policy(policy: str) -> Call[str]:
    return Call("SetPolicy", scheduler_pb2.SetPolicyRequest(policy=policy), lambda answer: answer.policy)


@dataclass(frozen=True, slots=True)
class Page:
    """A part of the list of requests; an empty token marks the last."""

    statuses: tuple[RequestStatus, ...]
    next_token: str


class Backoff:
    """Pauses between attempts at a call: 0.1 s and doubling, up to 2 s, for `patience` seconds in all.

    The pauses are shortened at random, so that clients of a scheduler that comes back do not all
    knock at once.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self.restart()

    def restart(self) -> None:
        """After something got through."""
        self._attempts = 0
        self._gives_up_at = time.monotonic() + self._patience

    def pause_after(self, error: RpcError) -> float:
        """Seconds to wait before the next attempt. Raises the error where there shall be none."""
        left = self._gives_up_at - time.monotonic()
        if not isinstance(error, Unavailable) or left <= 0:
            raise error from None
        pause = min(0.1 * 2**self._attempts, 2.0) * random.uniform(0.5, 1.0)
        self._attempts += 1
        return min(pause, left)


class Watching:
    """One watch over any number of streams: which events are new, and how long it may still take."""

    def __init__(self, id: str, timeout: float | None, previews: int = 0) -> None:
        if not 0 <= previews < 2**31:
            raise InvalidArgument(f"previews: {previews} is not 0 (none) or a number of steps")
        message = scheduler_pb2.WatchRequest(id=id, preview_every=previews)
        self.call = Call("Watch", message, convert.event_from_proto, streams=True)
        self._overdue = DeadlineExceeded(f"request {id} did not end within {timeout} s; it goes on")
        self._ends_at = None if timeout is None else time.monotonic() + timeout
        self._last: RequestStatus | None = None

    @property
    def ended(self) -> bool:
        """Whether the request has ended, so that no event can follow."""
        return self._last is not None and self._last.ended

    def time_left(self) -> float | None:
        """Seconds for the next stream; None: no limit. Raises DeadlineExceeded where there are none."""
        if self._ends_at is None:
            return None
        left = self._ends_at - time.monotonic()
        if left <= 0:
            raise self._overdue
        return left

    def is_new(self, event: Event) -> bool:
        """A stream opens with the request as it is, which after a break may be known already."""
        new = event.status != self._last or event.preview is not None
        self._last = event.status
        return new

    def broken_by(self, error: RpcError | None) -> RpcError:
        """What the end of a stream means where the request has not ended."""
        if error is None:
            return Unavailable("the scheduler ended the watch before the request ended")
        return self._overdue if isinstance(error, DeadlineExceeded) else error


class Paging:
    """The pages of a list, one after the other."""

    def __init__(self, stages: Iterable[Stage | str], limit: int | None) -> None:
        self._stages = [convert.stage_to_proto(_choice(Stage, stage, "stages")) for stage in stages]
        self._left = math.inf if limit is None else limit
        self._token = ""
        self._done = False

    def next_call(self) -> Call[Page] | None:
        """None after the last page."""
        if self._done or self._left <= 0:
            return None
        message = scheduler_pb2.ListRequest(
            page_size=int(min(self._left, 100)), page_token=self._token, stages=self._stages
        )
        return Call("List", message, _page)

    def take(self, page: Page) -> tuple[RequestStatus, ...]:
        """What to hand out of the page that came."""
        statuses = page.statuses[: int(min(self._left, len(page.statuses)))]
        self._left -= len(statuses)
        self._token = page.next_token
        self._done = not page.next_token
        return statuses


def check_done(status: RequestStatus) -> None:
    """Raises RequestEnded where a request ended without an image."""
    if status.stage is not Stage.DONE:
        raise RequestEnded(status)


def _page(answer: scheduler_pb2.ListResponse) -> Page:
    return Page(
        tuple(convert.status_from_proto(status) for status in answer.statuses), answer.next_page_token
    )


def _seed(id: str | None) -> int:
    """Random; with an id it follows from it, so that whoever submits again asks for the same picture."""
    if not id:
        return secrets.randbits(32)
    return int.from_bytes(hashlib.sha256(id.encode(errors="replace")).digest()[:4])


def _image(
    prompt: str,
    size: Size,
    steps: int | None,
    seed: int = 0,
    guidance: float | None = None,
    negative_prompt: str = "",
    lora: str | None = None,
) -> ImageSpec:
    width, height = parse_size(size)
    # The contract's 0 is "as many as the model does by default"; asked for, it is a mistake.
    if steps is not None and steps < 1:
        raise InvalidArgument(f"steps: {steps} is not 1 or more")
    return ImageSpec(prompt, width, height, steps or 0, seed, guidance, negative_prompt, *parse_lora(lora))


def _join(answers: Sequence[scheduler_pb2.GetImageResponse]) -> bytes:
    image = b"".join(answer.chunk for answer in answers)
    total = answers[0].total_bytes if answers else 0
    if not image or len(image) != total:
        raise Unavailable(f"the image came incomplete: {len(image)} of {total} bytes")
    return image


def _choice(kind: type[E], value: str, field: str) -> E:
    try:
        return kind(value)
    except ValueError:
        raise InvalidArgument(f"{field}: {value!r} is not one of {', '.join(kind)}") from None
