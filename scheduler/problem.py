"""What a policy sees (Problem) and what it answers (Plan): plain data, no behaviour of its own.

Times are seconds on the scheduler's clock; slots number the GPUs of the cluster from 0.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from scheduler.profile import Profile


class Stage(Enum):
    """Where a request is in its life; orders are about the three in the middle."""

    QUEUED = "queued"
    ENCODING = "encoding"
    DENOISING = "denoising"
    DECODING = "decoding"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    DROPPED = "dropped"

    @property
    def ended(self) -> bool:
        """Whether nothing comes after it."""
        return self in (Stage.DONE, Stage.FAILED, Stage.CANCELLED, Stage.DROPPED)


ROLES = (Stage.ENCODING, Stage.DENOISING, Stage.DECODING)
"""The stages that orders are about; an executor's roles are those that it takes orders for."""
EVERY_ROLE = frozenset(ROLES)


@dataclass(frozen=True, slots=True)
class Request:
    """An outstanding request: what is left of it beyond the orders it already has.

    `stage` is the next to plan, ENCODING to DECODING; `steps` are denoising steps not yet ordered (0 from
    DECODING on). It can start at `ready_at`, the end of its last order (at most `Problem.now`
    where it waits). `slots` hold its latent, leader first; empty before its first order. `home` is the node
    that it is planned on, where that is settled. `alone`: it must not share a step with others now.
    `lora` is its adapter and how much of it. A `promised` deadline must be kept. `ending`: an order of it is
    being ended early, at `ready_at`; the next can be given once that is reported.
    """

    id: str
    width: int
    height: int
    stage: Stage
    steps: int
    ready_at: float
    arrived_at: float
    deadline: float = math.inf
    weight: float = 1.0
    slots: tuple[int, ...] = ()
    drop_late: bool = False
    home: str | None = None
    alone: bool = False
    lora: str = ""
    promised: bool = False
    ending: bool = False

    @property
    def batch_key(self) -> tuple[object, ...]:
        """What is equal for all requests that can share a step."""
        return self.width, self.height, self.lora

    def can_join(self, other: "Request") -> bool:
        """Whether the next steps of the two can run as a batch."""
        return (
            self.stage is other.stage is Stage.DENOISING
            and self.batch_key == other.batch_key
            and self.home == other.home
            and not (self.alone or other.alone)
        )


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU, when its orders end, and what it can run; groups stay within an `island` of a `node`."""

    slot: int
    free_at: float
    node: str = ""
    roles: frozenset[Stage] = EVERY_ROLE
    island: str = ""


@dataclass(frozen=True, slots=True)
class Running:
    """An order under way that could be made to end at its next step, at `ends`, not only at `until`.

    One that `yields` is left in the middle of a step, which is lost. `request` is what would be left of its
    request then, the rest of the order included. `in_vain`: so was the one before, and none of its steps has
    been done since.
    """

    request: Request
    slots: tuple[int, ...]
    ends: float
    until: float
    yields: bool = False
    in_vain: bool = False


@dataclass(frozen=True, slots=True)
class Problem:
    """The state at the start of a round.

    Only GPUs that are free by `horizon` and requests that are `startable` can be given an order in this
    plan; the others are listed because they will compete later. `round_s` bounds an order's length: as
    many whole steps as fit, at least one. `margin_s` is kept free before every deadline.
    `slack_s` is how long GPUs can be kept from arrivals at little risk (`demand.py`). Idle GPUs may
    speed an order up where of the GPU-seconds that it then takes at most the share `scale_up` is extra: 0
    spends none, 1 all there are. `running` are orders that the plan may interrupt. `profile` tells how long
    things take; where nodes are planned apart, `profiles` does for those on which they take otherwise.
    """

    now: float
    horizon: float
    round_s: float
    gpus: tuple[Gpu, ...]
    requests: tuple[Request, ...]
    profile: Profile
    margin_s: float = 0.0
    slack_s: float = math.inf
    scale_up: float = 1.0
    running: tuple[Running, ...] = ()
    profiles: Mapping[str, Profile] = field(default_factory=dict)

    def profile_of(self, node: str) -> Profile:
        """How long things take on a node."""
        return self.profiles.get(node, self.profile)

    def degrees(self, request: Request) -> tuple[int, ...]:
        """Degrees for the request's next stage, ascending, that are faster than every narrower one."""
        if request.stage is not Stage.DENOISING:
            return (1,)
        return self.profile.degrees(request.width, request.height)

    def steps_per_order(self, request: Request, degree: int, batch: int = 1) -> int:
        """Steps in one order of at most `round_s` (at least one step); 0 outside DENOISING."""
        if request.stage is not Stage.DENOISING:
            return 0
        step = self.profile.step(request.width, request.height, degree, batch)
        return min(request.steps, max(1, int(self.round_s / step + 1e-9)))

    def duration(self, request: Request, degree: int, steps: int, batch: int = 1) -> float:
        """Seconds of an order of the next stage of the request, or of a batch of such."""
        match request.stage:
            case Stage.ENCODING:
                return self.profile.encode()
            case Stage.DENOISING:
                return steps * self.profile.step(request.width, request.height, degree, batch)
            case Stage.DECODING:
                return self.profile.decode(request.width, request.height)
            case _:
                raise ValueError(f"no order is about {request.stage}")

    def startable(self, request: Request) -> bool:
        """Whether the request can be given an order in this plan."""
        return request.ready_at <= self.horizon and not request.ending

    def least_seconds(self, request: Request) -> float:
        """Seconds that all that is left takes at the fastest degrees, without waiting."""
        encodings = int(request.stage is Stage.ENCODING)
        return self.profile.least_seconds(request.width, request.height, request.steps, encodings)

    def is_late(self, request: Request) -> bool:
        """Whether the deadline is missed even at the fastest degrees from now on."""
        start = max(self.now, request.ready_at)
        return start + self.least_seconds(request) > request.deadline + 1e-9


@dataclass(frozen=True, slots=True)
class Assignment:
    """One order to be given: the next stage of the requests, for `steps` steps each, on `slots`.

    Nearly always of one request. The denoising steps of several (see `Request.can_join`) run as a batch,
    each from its own next step on; none has fewer than `steps` left.
    """

    request_ids: tuple[str, ...]
    stage: Stage
    slots: tuple[int, ...]
    steps: int
    begin: float
    end: float

    @property
    def degree(self) -> int:
        """Degree of sequence parallelism."""
        return len(self.slots)

    @property
    def batch(self) -> int:
        """How many requests share its steps."""
        return len(self.request_ids)


OPTIMAL, NOT_RUN = "optimal", "not run"


@dataclass(frozen=True, slots=True)
class Decision:
    """How a plan was found; `bound` and `objective` are in requests (weighted) on time.

    A `status` of OPTIMAL: no plan has more on time. Of NOT_RUN: a solver has a better answer, which could not
    be run in whole steps.

    Those on time are to take `gpu_seconds` for their steps; if each had all GPUs to itself, they would take
    `least_gpu_seconds`.
    """

    source: str = "heuristic"
    status: str = ""
    objective: float = math.nan
    bound: float = math.nan
    build_s: float = 0.0
    solve_s: float = 0.0
    gpu_seconds: float = math.nan
    least_gpu_seconds: float = math.nan

    @property
    def gap(self) -> float:
        """Weighted requests that a better plan could have on time, at most."""
        return self.bound - self.objective

    @property
    def gpu_seconds_gap(self) -> float:
        """GPU-seconds that a plan with the same requests on time could save, at most; sharing steps aside."""
        return self.gpu_seconds - self.least_gpu_seconds


@dataclass(frozen=True, slots=True)
class Plan:
    """Orders to give now, and the ids of requests that are certain to be late.

    `interrupted`: ids of requests whose orders, of those in `Problem.running`, are to end at their next step.

    `again_at`: plan again then, should nothing happen before; how a policy keeps to rounds of its own.
    `unplanned`: nodes that the time did not suffice for; they are the next to plan.
    """

    assignments: tuple[Assignment, ...] = ()
    late: tuple[str, ...] = ()
    again_at: float = math.inf
    decision: Decision = field(default_factory=Decision)
    unplanned: tuple[str, ...] = ()
    interrupted: tuple[str, ...] = ()


Policy = Callable[[Problem, float], Plan]
"""A pure function: the problem and a time budget in seconds give a plan."""
