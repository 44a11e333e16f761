"""The core's books of nodes: which slots each has, what is planned there, and which are to be planned.

An event on one node leaves the plans of the others as they are.
"""

import math
from collections.abc import Iterable

from scheduler.dispatch import Load
from scheduler.problem import EVERY_ROLE
from scheduler.tracking import Slot, Tracked


class Nodes:
    """Nodes by name. Requests without a home wait until they are given one."""

    def __init__(self) -> None:
        self.slots: dict[str, dict[int, Slot]] = {}
        self.members: dict[str, dict[str, Tracked]] = {}
        self.homeless: dict[str, Tracked] = {}
        self.loads: dict[str, Load] = {}
        """As far as they are known."""
        self._node: dict[int, str] = {}
        self._stale: dict[str, None] = {}  # oldest first
        self._planned_at: dict[str, float] = {}  # oldest first
        self._open: list[str] | None = None
        self._apart: bool | None = None

    # Slots.

    def join(self, slot: Slot) -> None:
        """A node has one more slot."""
        self._node[slot.slot] = slot.node
        self.slots.setdefault(slot.node, {})[slot.slot] = slot
        self.members.setdefault(slot.node, {})
        if slot.node not in self._planned_at:
            self._planned_at = {slot.node: -math.inf, **self._planned_at}
        self._open = self._apart = None
        self.touch(slot.node)

    def lose(self, slot: Slot) -> None:
        """A slot is gone; with a node's last one its requests lose their home."""
        del self._node[slot.slot], self.slots[slot.node][slot.slot]
        self.touch(slot.node)
        self.leave(slot)
        if not self.slots[slot.node]:
            for books in (self.slots, self.members, self._planned_at, self._stale, self.loads):
                books.pop(slot.node, None)

    def leave(self, slot: Slot) -> None:
        """A slot takes no more orders."""
        self.touch(slot.node)
        self._open = self._apart = None
        if not self._takes_orders(slot.node):
            for tracked in list(self.members[slot.node].values()):
                self.remove(tracked)
                self.add(tracked)

    def _takes_orders(self, node: str) -> bool:
        return any(not slot.leaving for slot in self.slots[node].values())

    @property
    def open(self) -> list[str]:
        """Nodes that take orders."""
        if self._open is None:
            self._open = [node for node in self.slots if self._takes_orders(node)]
        return self._open

    @property
    def apart(self) -> bool:
        """Whether nodes are planned apart: only where each can run a request from end to end."""
        if self._apart is None:
            self._apart = all(
                frozenset(r for s in self.slots[node].values() if not s.leaving for r in s.roles)
                == EVERY_ROLE
                for node in self.open
            )
        return self._apart

    def of(self, slots: Iterable[int]) -> str | None:
        """The node that one of these slots is on, as far as it takes orders."""
        nodes = (self._node[slot] for slot in slots if slot in self._node)
        return next((node for node in nodes if self._takes_orders(node)), None)

    # Requests.

    def add(self, tracked: Tracked) -> None:
        """A request that has no home yet."""
        tracked.home = None
        self.homeless[tracked.id] = tracked

    def remove(self, tracked: Tracked) -> None:
        """Forget a request."""
        self.homeless.pop(tracked.id, None)
        if tracked.home in self.members:
            self.members[tracked.home].pop(tracked.id, None)
            self.touch(tracked.home)

    def settle(self, tracked: Tracked, home: str) -> None:
        """Give a request a home, whose load counts it already."""
        self.remove(tracked)
        tracked.home = home
        self.members[home][tracked.id] = tracked
        self._stale[home] = None

    # Planning.

    def touch(self, *nodes: str | None) -> None:
        """Something has happened there: plan them anew."""
        for node in nodes:
            if node in self.slots:
                self._stale[node] = None
                self.loads.pop(node, None)

    def touch_slots(self, slots: Iterable[int]) -> None:
        """The same by slots."""
        self.touch(*{self._node[slot] for slot in slots if slot in self._node})

    def touch_all(self) -> None:
        """The same for all."""
        self.touch(*self.slots)

    def oldest_plan(self) -> float:
        """When the node was planned that has waited longest, of those that may go on without an event."""
        return next((at for node, at in self._planned_at.items() if self._may_go_on(node)), math.inf)

    def due(self, now: float, round_s: float) -> list[str]:
        """The nodes to plan: touched, or planned a round ago and may go on; one alone always."""
        if len(self.slots) == 1 or not self.apart:
            return list(self.slots)
        for node, at in self._planned_at.items():
            if at + round_s > now:
                break
            if node not in self._stale and self._may_go_on(node):
                self._stale[node] = None
        return list(self._stale)

    def planned(self, now: float, nodes: Iterable[str]) -> None:
        """These are being planned now."""
        for node in nodes:
            self._planned_at.pop(node)
            self._planned_at[node] = now
            self._stale.pop(node, None)

    def _may_go_on(self, node: str) -> bool:
        """Whether a GPU idles while requests are outstanding."""
        outstanding = self.members[node] or self.homeless
        return bool(outstanding) and any(not slot.queue for slot in self.slots[node].values())
