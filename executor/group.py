"""A group of executors that run a step together, as one of its members sees it."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch.distributed as dist

from executor import rendezvous
from executor.meeting import Agreement, CalledOff, Meeting, Missing
from executor.process_group import CONNECT_TIMEOUT_S, Link, World, is_communication_error


@dataclass(frozen=True)
class Member:
    """An executor in a group: its slot, and the address of its store ("host:port")."""

    slot: int
    store: str


class Left(Exception):
    """A step was left, by all members before the same layer. The states before it stand."""


class GroupAborted(RuntimeError):
    """The group ended under its members; what it was doing can be done again by others.

    `lost` has the slots of the members that did not answer, where that is known.
    """

    def __init__(self, reason: str, lost: Sequence[int] = ()) -> None:
        super().__init__(reason)
        self.lost = tuple(lost)


@dataclass(frozen=True)
class Split:
    """A group as xfuser's USP sees it: `ulysses` x `ring` members, each with its rank and process group.

    Rank in the group is `ring_rank * ulysses + ulysses_rank`. A side of one has no process group.
    """

    ulysses: int
    ring: int
    ulysses_rank: int
    ring_rank: int
    ulysses_pg: dist.ProcessGroup | None
    ring_pg: dist.ProcessGroup | None


class Group:
    """Some members, as one of them sees them. Comes from `Groups.get`.

    Attributes:
        name: "sp/e{epoch}/{slots}", the leader's slot first.
        epoch: groups of different epochs never meet.
        members: the leader first.
        rank: of this member; 0 leads.
    """

    def __init__(self, epoch: int, members: tuple[Member, ...], rank: int, world: World) -> None:
        self.name = group_name(epoch, members)
        self.epoch = epoch
        self.members = members
        self.rank = rank
        self._world = world
        self._store: dist.Store | rendezvous.RemoteStore | None = None
        self._meeting: Meeting | None = None
        self._past: list[str] = []  # where the leader wrote for meetings before
        self._held = Agreement(generation=0, ports=())
        self._links: list[Link] = []
        self._splits: dict[int, Split] = {}
        self._lock = threading.Lock()
        self._aborted: GroupAborted | None = None

    @property
    def degree(self) -> int:
        """How many members."""
        return len(self.members)

    @property
    def leads(self) -> bool:
        """Whether this member is the leader."""
        return self.rank == 0

    @property
    def slots(self) -> tuple[int, ...]:
        """The members' slots, the leader's first."""
        return tuple(m.slot for m in self.members)

    @property
    def pg(self) -> dist.ProcessGroup:
        """The process group of all members; a group of one has none."""
        if not self._links:
            raise RuntimeError(f"{self.name} has no process group")
        return self._links[0].pg

    def split(self, heads: int) -> Split:
        """How `heads` attention heads are shared: by Ulysses as far as they divide, by ring beyond that.

        All members must ask for it at the same point of their work: the first time, a split with both
        sides makes process groups.
        """
        if heads not in self._splits:
            self._splits[heads] = self._make_split(math.gcd(heads, self.degree))
        return self._splits[heads]

    def _make_split(self, ulysses: int) -> Split:
        ring = self.degree // ulysses
        ring_rank, ulysses_rank = divmod(self.rank, ulysses)
        if self.degree == 1:
            ulysses_pg = ring_pg = None
        elif ring == 1:
            ulysses_pg, ring_pg = self.pg, None
        elif ulysses == 1:
            ulysses_pg, ring_pg = None, self.pg
        else:
            ulysses_pg = self._link(f"u{ulysses}.{ring_rank}", ulysses_rank, ulysses)
            ring_pg = self._link(f"r{ulysses}.{ulysses_rank}", ring_rank, ring)
        return Split(ulysses, ring, ulysses_rank, ring_rank, ulysses_pg, ring_pg)

    def _link(self, part: str, rank: int, size: int) -> dist.ProcessGroup:
        assert self._store is not None
        name = f"{self.name}/g{self._held.generation}/{part}"
        link = self._world.create(name, rendezvous.native(self._store), rank, size, self._held.ports)
        with self._lock:
            self._links.append(link)
            aborted = self._aborted
        if aborted:
            link.cut()
            raise aborted
        # One that fails right after this must not leave another one half way, where nothing reaches it.
        self._store.set(f"{name}/made/{rank}", b"")
        made = [f"{name}/made/{peer}" for peer in range(size)]
        with self._faults():
            rendezvous.wait(self._store, made, CONNECT_TIMEOUT_S, self.check, self._left)
        return link.pg

    def publish(self, key: str, value: bytes) -> None:
        """The leader tells its members something, under a key that it uses once in an order.

        It is deleted when the members meet again. In a group of one it is for nobody.
        """
        if not self.leads:
            raise RuntimeError(
                f"slot {self.slots[self.rank]} publishes in {self.name}, which it does not lead"
            )
        if self._meeting:
            self._meeting.publish(key, value)

    def read(self, key: str, timeout_s: float) -> bytes:
        """What the leader published under `key` in this order, once it has.

        Raises:
            GroupAborted: the group ended, or nothing came in time.
        """
        if not self._meeting:
            raise RuntimeError("a group of one has nobody to tell it anything")
        with self._faults():
            return self._meeting.read(key, timeout_s, self.check, self._left)

    def peek(self, key: str) -> bytes | None:
        """What the leader published under `key` in this order; None: nothing yet.

        Raises:
            GroupAborted: the leader does not answer.
        """
        if not self._meeting:
            raise RuntimeError("a group of one has nobody to tell it anything")
        with self._faults():
            return self._meeting.peek(key)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Put around what uses the group: whatever goes wrong inside ends the group for all members.

        Raises:
            GroupAborted: another member failed, was lost, or the group was aborted; else the error of
                this member comes out as it is.
            Left: by all members, with nothing in flight; it does not end the group.
        """
        try:
            yield
            self.check()
        except Left:
            self.check()
            raise
        except BaseException as error:
            reason = self._aborted
            peers_gone = is_communication_error(error) or any(link.broken() for link in self._links)
            if self.degree > 1:
                self.abort(f"{type(error).__name__}: {error}")
            if isinstance(error, GroupAborted) or not isinstance(error, Exception):
                raise
            if reason or peers_gone:
                raise reason or GroupAborted(f"{self.name}: {error}") from error
            raise

    def abort(self, reason: str, lost: Sequence[int] = ()) -> None:
        """End the group. Any thread.

        What blocks in it here fails at once, and so does a peer that waits for this member; a peer that
        waits for another one fails when that one has.
        """
        with self._lock:
            if not self._aborted:
                self._aborted = GroupAborted(f"{self.name} was aborted: {reason}", lost)
            links = list(self._links)
        for link in links:
            link.cut()

    @property
    def aborted(self) -> bool:
        """Whether it has ended."""
        return self._aborted is not None

    def check(self) -> None:
        """Raise the GroupAborted that ended it, if one did.

        On CUDA, what a step computed counts only if this passes after the device was waited for: an
        aborted collective leaves garbage, and no error.
        """
        if self._aborted:
            raise self._aborted

    def _left(self) -> GroupAborted | None:
        gone = any(link.broken() for link in self._links)
        return GroupAborted(f"a member has left {self.name}") if gone else None

    @contextmanager
    def _faults(self) -> Iterator[None]:
        """Turn what can go wrong with the leader and its store into GroupAborted, and end the group by it."""
        try:
            yield
        except GroupAborted as error:
            self.abort(str(error), error.lost)
            raise
        except (TimeoutError, ConnectionError, dist.DistError) as error:
            leader = self.slots[:1]
            self.abort(str(error), leader)
            raise GroupAborted(f"{self.name}: its leader does not answer: {error}", leader) from error

    def _meet(
        self,
        store: dist.Store | rendezvous.RemoteStore,
        name: str,
        generations: Iterator[int],
        timeout_s: float,
        check: Callable[[], None],
    ) -> None:
        """Wait until all members are there, and hold a process group that all of them hold."""
        meeting = Meeting(store, self.name, name)
        self._store, self._meeting = store, meeting
        meeting.arrive(self.rank, self._held.generation, self._world.port)
        try:
            if self.leads:
                agreement = self._preside(meeting, store, generations, timeout_s, check)
            else:
                agreement = meeting.result(timeout_s, self.check)
        except Missing as missing:
            lost = [self.slots[rank] for rank in missing.ranks]
            raise GroupAborted(f"slots {lost} did not come to {self.name} in {timeout_s:g} s", lost) from None
        if agreement.generation == self._held.generation:
            return
        self._free()
        self._held = agreement
        try:
            self._link("all", self.rank, self.degree)
        except RuntimeError as error:
            raise GroupAborted(f"{self.name} could not be made: {error}") from error

    def _preside(
        self,
        meeting: Meeting,
        store: dist.Store | rendezvous.RemoteStore,
        generations: Iterator[int],
        timeout_s: float,
        check: Callable[[], None],
    ) -> Agreement:
        """The leader's part of a meeting: which generation of the group they go on with."""

        def look() -> None:
            self.check()
            if reason := meeting.called_off():
                raise CalledOff(reason)
            check()

        self._past.append(meeting.prefix)
        try:
            came = meeting.await_all(self.degree, timeout_s, look)
        except CalledOff as off:
            meeting.call_off(str(off))
            raise
        except Missing as missing:
            return meeting.give_up(missing)
        # All are here, so nobody reads what was written for earlier meetings any more.
        rendezvous.clear(store, *self._past[:-1], f"{self.name}/g")
        del self._past[:-1]
        held = {arrival.generation for arrival in came}
        agreed = held == {self._held.generation} and self._held.generation > 0
        generation = self._held.generation if agreed else next(generations)
        return meeting.settle(Agreement(generation, tuple(p for arrival in came for p in arrival.ports)))

    def _free(self) -> None:
        with self._lock:
            links, self._links = self._links, []
        self._splits.clear()
        for link in links:
            link.close()

    def _close(self) -> None:
        """End it for good, on the thread that uses it."""
        self.abort("it was dropped")
        self._free()


def group_name(epoch: int, members: Sequence[Member]) -> str:
    """The name of a group, the same at all of its members."""
    return f"sp/e{epoch}/{'-'.join(str(m.slot) for m in members)}"
