"""What the core says: orders to executors, and the other effects of an event. Plain data."""

from dataclasses import dataclass
from enum import Enum

from scheduler.problem import Stage


class Outcome(Enum):
    """How an order ended on one executor."""

    OK = "ok"
    ERROR = "error"  # the request's own fault, or a bug: repeating may fail again
    ABORTED = "aborted"  # a member was lost: repeat it elsewhere
    RETURNED = "returned"  # not begun, handed back


@dataclass(frozen=True, slots=True)
class Order:
    """Work for all executors in `slots`, leader first.

    Ids rise, and every executor runs its orders by id, so that groups cannot deadlock. `holders` are
    slots that hold, or will hold, the request's state at `first_step`; `from_checkpoint` where nobody
    does. An order without a request `measures` step times, or only makes its group and uses it once.
    """

    id: int
    slots: tuple[int, ...]
    epoch: int
    request_id: str = ""
    stage: Stage | None = None
    first_step: int = 0
    steps: int = 0
    holders: tuple[int, ...] = ()
    from_checkpoint: bool = False
    measures: bool = False

    @property
    def leader(self) -> int:
        """The slot that reports steps and decides where to stop."""
        return self.slots[0]


@dataclass(frozen=True, slots=True)
class Report:
    """How an order ended on one slot; `steps_done` counts from the request's first step."""

    slot: int
    outcome: Outcome = Outcome.OK
    steps_done: int = 0
    seconds: float = 0.0
    error: str = ""


@dataclass(frozen=True, slots=True)
class Give:
    """Send the order to all its slots."""

    order: Order


@dataclass(frozen=True, slots=True)
class Truncate:
    """Tell the order's leader to stop at the next step boundary."""

    order_id: int
    leader: int


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
