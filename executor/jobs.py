"""Orders as the executor holds them: a queue in the order given, and what was said of each since."""

import threading
from collections import deque
from collections.abc import Sequence
from enum import IntEnum

from executor.groups import Member
from executor.link import Session
from tetriserve.v1 import executor_pb2 as pb


class Halt(IntEnum):
    """Why an order is not to go on; the greater one wins."""

    NONE = 0
    TRUNCATED = 1  # its leader ends it at the next step boundary, or within the step where it yields
    RETURNED = 2  # handed back if it has not begun, else truncated: this executor stops, or has no scheduler
    ABORTED = 3  # its group is lost


class Job:
    """An order of a session.

    The event loop sets `halt` and `dropped`; the device thread looks at them between steps, and between
    layers where the order yields.
    """

    def __init__(self, order: pb.Order, session: Session) -> None:
        self.order = order
        self.session = session
        self.halt = Halt.NONE
        self.reason = ""
        self.lost: tuple[int, ...] = ()
        self.dropped: frozenset[str] = frozenset()  # requests for which it is not to go on
        self.met = False  # all members were there: nobody waits for this one outside a collective

    @property
    def request_ids(self) -> list[str]:
        """The requests that it is for."""
        return [part.request_id for part in self.order.parts]

    @property
    def leader(self) -> int:
        """Slot of its group's leader."""
        return self.order.group.members[0].slot

    @property
    def leads(self) -> bool:
        """Whether this executor is the leader of the order's group."""
        return self.leader == self.session.slot

    @property
    def degree(self) -> int:
        """Members of its group."""
        return len(self.order.group.members)

    @property
    def slots(self) -> set[int]:
        """Slots of its group's members."""
        return {member.slot for member in self.order.group.members}

    @property
    def may_be_left(self) -> bool:
        """Whether its running step may be left: it is to end, and its group is whole."""
        return self.halt in (Halt.TRUNCATED, Halt.RETURNED)

    @property
    def meeting(self) -> tuple[int, tuple[Member, ...], str]:
        """Epoch, members and name of the meeting at which its group begins it."""
        group = self.order.group
        members = tuple(Member(member.slot, member.store) for member in group.members)
        return group.epoch, members, f"{self.session.term}.{self.order.id}"

    def stop(self, halt: Halt, reason: str, lost: Sequence[int] = ()) -> None:
        """Ask for its end."""
        if halt > self.halt:
            # The device thread looks at `halt`: what goes with it must be there first.
            self.reason, self.lost = reason, tuple(lost)
            self.halt = halt

    def drop(self, request_id: str, reason: str) -> None:
        """Ask for its end for one of its requests; without any it is truncated."""
        self.dropped |= {request_id}
        if self.dropped.issuperset(self.request_ids):
            self.stop(Halt.TRUNCATED, reason)


class Jobs:
    """The queue between the event loop and the device thread; every method is safe on both."""

    def __init__(self) -> None:
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._changed = threading.Condition()
        self._closed = False

    def put(self, job: Job) -> None:
        """Queue an order behind all others."""
        with self._changed:
            self._waiting.append(job)
            self._changed.notify()

    def take(self) -> Job | None:
        """The next order, which is then the running one; waits for it. None: closed, and all have run."""
        with self._changed:
            self._running = None
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if self._waiting:
                self._running = self._waiting.popleft()
            return self._running

    def all(self) -> list[Job]:
        """The running order and those that wait."""
        with self._changed:
            return [*([self._running] if self._running else []), *self._waiting]

    def close(self) -> None:
        """Let `take` answer None once nothing waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
