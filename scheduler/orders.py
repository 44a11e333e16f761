"""What the core says: orders to executors, and the other effects of an event. Plain data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from scheduler.problem import Stage


class Outcome(Enum):
    """How an order ended on one executor."""

    OK = "ok"
    ERROR = "error"  # the request's own fault, or a bug: repeating may fail again
    ABORTED = "aborted"  # a member was lost: repeat it elsewhere
    RETURNED = "returned"  # not begun, handed back


@dataclass(frozen=True, slots=True)
class Part:
    """What an order is to one of its requests.

    `holders` are slots that hold, or will hold, the request's state at `first_step`; `from_checkpoint`
    where nobody does.
    """

    request_id: str
    first_step: int = 0
    holders: tuple[int, ...] = ()
    from_checkpoint: bool = False


@dataclass(frozen=True, slots=True)
class Order:
    """Work for all executors in `slots`, leader first: `steps` steps of each part, as a batch.

    Ids rise, and every executor runs its orders by id, so that groups cannot deadlock. An order without
    parts `measures` step times, or only makes its group and uses it once. One that `yields` can be ended in
    the middle of a step, which then does not count.
    """

    id: int
    slots: tuple[int, ...]
    epoch: int
    stage: Stage | None = None
    steps: int = 0
    parts: tuple[Part, ...] = ()
    measures: bool = False
    yields: bool = False

    @property
    def leader(self) -> int:
        """The slot that reports steps and decides where to stop."""
        return self.slots[0]

    @property
    def request_ids(self) -> tuple[str, ...]:
        """The requests that it is for."""
        return tuple(part.request_id for part in self.parts)


@dataclass(frozen=True, slots=True)
class Report:
    """How an order ended on one slot.

    `held`: the steps behind each of its requests that the slot holds, counted from the request's first.
    """

    slot: int
    outcome: Outcome = Outcome.OK
    held: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    error: str = ""


@dataclass(frozen=True, slots=True)
class Give:
    """Send the order to all its slots."""

    order: Order


@dataclass(frozen=True, slots=True)
class Truncate:
    """Tell the order's leader to stop for one of its requests: at the next step boundary, or, when it is for
    nobody any more and yields, at once."""

    order_id: int
    leader: int
    request_id: str


@dataclass(frozen=True, slots=True)
class Release:
    """Tell these slots to forget the request's state."""

    request_id: str
    slots: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Abort:
    """Tell `slots` to end their groups of epochs before `epoch` that contain one of `lost`."""

    epoch: int
    slots: tuple[int, ...]
    lost: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Changed:
    """The request's status has changed."""

    request_id: str


Effect = Give | Truncate | Release | Abort | Changed
