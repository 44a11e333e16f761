"""The core's books: requests, the orders that are out, and the slots that they are out on."""

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from scheduler.orders import Order, Outcome, Part, Report
from scheduler.problem import EVERY_ROLE, Request, Stage

QUEUE_DEPTH = 2
"""Orders that an executor, or a request, can have at once: the running one and one ahead."""
ONCE: Sequence[int] = range(1)
"""What takes time of an order without steps: all of it."""


@dataclass(frozen=True, slots=True)
class Submission:
    """A request as far as planning is concerned; what it draws is the service's business."""

    id: str
    width: int
    height: int
    steps: int
    deadline_s: float | None = None
    weight: float = 1.0
    drop_late: bool | None = None
    lora: str = ""

    @property
    def batch_key(self) -> tuple[object, ...]:
        """What is equal for all requests that can share a step."""
        return self.width, self.height, self.lora


@dataclass(slots=True)
class Span:
    """One order as it ran; `end` is NaN while it runs. `batch` requests shared its steps."""

    stage: Stage
    slots: tuple[int, ...]
    first_step: int
    steps: int
    begin: float
    end: float = math.nan
    batch: int = 1


@dataclass(slots=True)
class Tracked:
    """A request and what has become of it. `late` is None while its deadline can be met or missed.

    `alone`: a batch that it was in has failed; until an order of its own ends well, it shares no steps,
    so that it is known whose fault it was.
    """

    submission: Submission
    arrived_at: float
    deadline: float
    stage: Stage = Stage.QUEUED
    steps_done: int = 0
    finished_at: float = math.nan
    late: bool | None = None
    error: str = ""
    gpu_seconds: float = 0.0
    failures: int = 0
    alone: bool = False
    in_vain: bool = False  # its last order ended before any of its steps was done
    checkpoint: int = 0  # steps behind the latest checkpoint; 0: none
    spans: list[Span] = field(default_factory=list)
    # What is not ordered yet, and who holds its state when all that is ordered has run.
    next_stage: Stage | None = Stage.ENCODING
    next_step: int = 0
    holders: tuple[int, ...] = ()
    held: dict[int, int] = field(default_factory=dict)  # slot -> steps done there
    flights: "list[Flight]" = field(default_factory=list)
    seen: Request | None = None  # by planning, last time
    home: str | None = None  # the node that it is planned on
    promised: bool = False
    claim: float | None = None  # by when it is to be done because it has waited for so long

    @classmethod
    def new(cls, submission: Submission, arrived_at: float) -> "Tracked":
        """A request that has just been accepted."""
        wait = math.inf if submission.deadline_s is None else submission.deadline_s
        return cls(submission, arrived_at, arrived_at + wait)

    @property
    def kept(self) -> bool:
        """Whether no other request may delay it beyond its time."""
        return self.promised or self.claim is not None

    @property
    def yields(self) -> bool:
        """Whether it gives way to others: it is late, or has no deadline."""
        return not self.kept and (self.late is True or self.deadline == math.inf)

    def drops_late(self, default: bool) -> bool:
        """Whether it is given up once it cannot be on time; by `default` where it does not say."""
        wish = self.submission.drop_late
        return not self.promised and (default if wish is None else wish)

    @property
    def id(self) -> str:
        """The request's id."""
        return self.submission.id

    @property
    def slots(self) -> tuple[int, ...]:
        """Where it runs now."""
        running = [f for f in self.flights if f.begun]
        return running[0].order.slots if running else ()

    def rewind(self, all_encode: bool) -> None:
        """Plan anew from the furthest step that an executor holds, or else from the checkpoint.

        For the latter its condition is needed, too: it is encoded again, unless all who denoise can encode.
        """
        furthest = max(self.held.values(), default=0)
        if self.held and furthest >= self.checkpoint:
            self.steps_done = furthest
            self.holders = tuple(sorted(s for s, step in self.held.items() if step == furthest))
        else:
            self.steps_done = self.checkpoint
            self.holders = ()
        self.next_step = self.steps_done
        if self.steps_done == self.submission.steps:
            self.next_stage = Stage.DECODING
        elif not self.holders and (self.steps_done == 0 or not all_encode):
            self.next_stage = Stage.ENCODING
        else:
            self.next_stage = Stage.DENOISING

    def begin_span(self, order: Order, part: Part, begin: float) -> None:
        """One of its orders has begun."""
        assert order.stage
        span = Span(order.stage, order.slots, part.first_step, order.steps, begin, batch=len(order.parts))
        self.spans.append(span)

    def end_span(self, now: float, flight: "Flight", part: Part) -> None:
        """One of its orders has ended."""
        order = flight.order
        seconds = max(report.seconds for report in flight.reports)
        if not flight.begun:
            if not seconds:
                return
            # Over before its predecessor was known to be.
            self.begin_span(order, part, now - seconds)
        for span in reversed(self.spans):
            if span.slots == order.slots and math.isnan(span.end):
                span.end = now
                reached = max(report.held.get(self.id, 0) for report in flight.reports)
                span.steps = max(0, min(span.steps, reached - span.first_step))
                return


@dataclass(slots=True, eq=False)
class Flight:
    """An order that has been given and not fully reported."""

    order: Order
    length: float  # seconds, predicted
    pending: set[int]
    costly: Sequence[int]  # its steps, from 0, that take time, all alike; `ONCE` where it has none
    begun_at: float = math.nan
    marked_at: float = math.nan  # last sign of progress
    steps_reported: int = 0
    end: float = math.inf  # predicted
    reports: list[Report] = field(default_factory=list)
    abort_at: float = math.inf  # when its silent members are aborted
    withdrawn: set[str] = field(default_factory=set)  # requests for which it is taken back
    last_step: float = math.inf  # after which it is to end, where it has been interrupted
    left_at: float = math.inf  # when it is to end, in the middle of a step, where it yields

    @property
    def begun(self) -> bool:
        """Whether its executors are at it."""
        return not math.isnan(self.begun_at)

    @property
    def failing(self) -> bool:
        """Whether it is known to end badly, or is taken back as a whole."""
        return self.taken_back or self._failed

    @property
    def taken_back(self) -> bool:
        """Whether it is to end for all of its requests."""
        return len(self.withdrawn) == len(self.order.parts) > 0

    def fails(self, request_id: str) -> bool:
        """Whether it is known to end badly for a request, or to be taken back."""
        return request_id in self.withdrawn or self._failed

    @property
    def ends_early(self) -> bool:
        """Whether it has been interrupted, and nothing else is known of it."""
        return self.last_step < math.inf and not self._failed

    @property
    def steps_in_the_end(self) -> int:
        """Steps that one that ends early will have done: its members may have heard of it a step too late.

        Never more than it has: who is interrupted in the last of them is told a later one.
        """
        return min(max(int(self.last_step), self.steps_reported), self.order.steps)

    @property
    def _failed(self) -> bool:
        return any(report.outcome is not Outcome.OK for report in self.reports)

    def predicted_end(self, now: float) -> float:
        """When a begun flight ends, by its pace so far; never in the past."""
        return max(now, self.end_of(self.last_step) if self.left_at == math.inf else self.left_at)

    @property
    def expected(self) -> float:
        """Seconds that it will take once it has begun."""
        return self.length * (bisect_left(self.costly, self.last_step) / len(self.costly))

    def end_of(self, step: float) -> float:
        """When so many of a begun flight's steps have been done, by its pace so far."""
        ahead = bisect_left(self.costly, step) - bisect_left(self.costly, self.steps_reported)
        return self.marked_at + self.length * max(0, ahead) / len(self.costly)

    def boundary(self, step: int) -> int:
        """Where it ends if it is told to after so many steps: those that take no time are over by then."""
        beyond = bisect_left(self.costly, step)
        return self.costly[beyond] if beyond < len(self.costly) else max(step, self.order.steps)

    def shares(self) -> list[float]:
        """GPU-seconds of each part once it has ended: by its steps, alike where none has ended."""
        order = self.order
        total = max(report.seconds for report in self.reports) * len(order.slots)
        ran = [
            max(0, *(report.held.get(part.request_id, 0) - part.first_step for report in self.reports))
            for part in order.parts
        ]
        if not sum(ran):
            ran = [1] * len(order.parts)
        return [total * steps / sum(ran) for steps in ran]


@dataclass(slots=True)
class Slot:
    """An executor: its orders by id, at most one running and one queued ahead."""

    slot: int
    node: str
    epoch: int
    roles: frozenset[Stage] = EVERY_ROLE
    island: str = ""
    queue: deque[Flight] = field(default_factory=deque)
    leaving: bool = False
    busy_seconds: float = 0.0

    @property
    def full(self) -> bool:
        """Whether it can be given no order now; those that are taken back do not count.

        Behind one that has failed on another member none is safe: an abort that ends it takes them along.
        """
        orders = [flight for flight in self.queue if not flight.taken_back]
        return len(orders) >= QUEUE_DEPTH or any(flight.failing for flight in orders)
