"""Groups of executors that run a step together.

A group has a name, from its epoch and its members, and is made by its members alone, at the first
order that needs it, over the store of its leader (the first member). It is kept for the orders to come
and made anew after a failure. Before each order its members meet: only who was there can be waited for
in a collective, a missing one is named, and members whose histories differ (one has dropped the group
from its cache, or has seen it fail) agree on a fresh one. Until all are there, any member can call the
order off without harm to the group.

One thread, the one that owns the device, uses groups; `drop`, and `call_off` by the leader, any may call.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from executor import rendezvous
from executor.process_group import Link, World, is_communication_error

# Meetings called off whose members may not have read it yet.
_REMEMBERED = 256


@dataclass(frozen=True)
class Member:
    """An executor in a group: its slot, and the address of its store ("host:port")."""

    slot: int
    store: str


class GroupAborted(RuntimeError):
    """The group ended under its members; what it was doing can be done again by others.

    `lost` has the slots of the members that did not answer, where that is known.
    """

    def __init__(self, reason: str, lost: Sequence[int] = ()) -> None:
        super().__init__(reason)
        self.lost = tuple(lost)


class CalledOff(Exception):
    """The meeting does not take place: a member has said that the order is not to begin. Nothing is lost."""


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
        self.name = _name(epoch, members)
        self.epoch = epoch
        self.members = members
        self.rank = rank
        self._world = world
        self._store: dist.Store | None = None
        self._meeting = ""
        self._past: list[str] = []  # where the leader wrote for meetings before
        self._generation = 0
        self._ports: list[int] = []
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
        name = f"{self.name}/g{self._generation}/{part}"
        link = self._world.create(name, self._store, rank, size, self._ports)
        with self._lock:
            self._links.append(link)
            aborted = self._aborted
        if aborted:
            link.cut()
            raise aborted
        return link.pg

    def publish(self, key: str, value: bytes) -> None:
        """The leader tells its members something, under a key that it uses once in an order.

        It is deleted when the members meet again.
        """
        if not self.leads:
            raise RuntimeError(
                f"slot {self.slots[self.rank]} publishes in {self.name}, which it does not lead"
            )
        if self._store:
            self._store.set(f"{self.name}/m{self._meeting}/{key}", value)

    def read(self, key: str, timeout_s: float) -> bytes:
        """What the leader published under `key` in this order, once it has.

        Raises:
            GroupAborted: the group ended, or nothing came in time.
        """
        if not self._store:
            raise RuntimeError("a group of one has nobody to tell it anything")
        with self._faults(lost_at_timeout=self.slots[:1]):
            (value,) = rendezvous.wait(
                self._store, [f"{self.name}/m{self._meeting}/{key}"], timeout_s, self._check_alive
            )
        return value

    @contextmanager
    def running(self) -> Iterator[None]:
        """Put around what uses the group: whatever goes wrong inside ends the group for all members.

        Raises:
            GroupAborted: another member failed, was lost, or the group was aborted; else the error of
                this member comes out as it is.
        """
        try:
            yield
            self._raise_if_aborted()
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
        """End the group: whoever is blocked in it, here or at a peer, fails at once. Any thread."""
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

    def _raise_if_aborted(self) -> None:
        if self._aborted:
            raise self._aborted

    def _check_alive(self) -> None:
        self._raise_if_aborted()
        if any(link.broken() for link in self._links):
            raise GroupAborted(f"a member has left {self.name}")

    @contextmanager
    def _faults(self, lost_at_timeout: Sequence[int]) -> Iterator[None]:
        """Turn what can go wrong with the leader's store into GroupAborted, and end the group by it."""
        try:
            yield
        except (TimeoutError, ConnectionError, dist.DistError, GroupAborted) as error:
            known = isinstance(error, GroupAborted)
            lost = error.lost if isinstance(error, GroupAborted) else tuple(lost_at_timeout)
            self.abort(str(error), lost)
            if known:
                raise
            raise GroupAborted(f"{self.name}: slots {list(lost)} did not answer: {error}", lost) from error

    def _meet(
        self,
        store: dist.Store,
        name: str,
        generations: Iterator[int],
        timeout_s: float,
        check: Callable[[], None],
    ) -> None:
        """Wait until all members are there, and hold a process group that all of them hold."""
        self._store, self._meeting = store, name
        prefix = f"{self.name}/m{name}/"
        store.set(f"{prefix}{self.rank}", f"{self._generation} {self._world.port}")
        arrivals = [f"{prefix}{rank}" for rank in range(self.degree)]

        def look() -> None:
            self._raise_if_aborted()
            if reason := _called_off(store, prefix):
                raise CalledOff(reason)
            if self.leads:
                check()

        if self.leads:
            answer = self._arrange(store, prefix, arrivals, generations, timeout_s, look)
        else:
            with self._faults(lost_at_timeout=self.slots[:1]):
                rendezvous.wait(store, arrivals[:1], timeout_s, look)
                # Longer than the leader's patience: it is the leader who says who is missing.
                patience = timeout_s + rendezvous.EXCHANGE_TIMEOUT_S
                (answer,) = rendezvous.wait(store, [f"{prefix}go"], patience, self._raise_if_aborted)
        verdict, *values = answer.decode().split()
        if verdict == "off":
            raise CalledOff(" ".join(values))
        if verdict == "missing":
            lost = [int(slot) for slot in values]
            self.abort("members are missing", lost)
            raise GroupAborted(f"slots {lost} did not come to {self.name} in {timeout_s:g} s", lost)
        if int(verdict) != self._generation:
            self._free()
            self._generation, self._ports = int(verdict), [int(port) for port in values]
            with self._faults(lost_at_timeout=()):
                try:
                    self._link("all", self.rank, self.degree)
                except RuntimeError as error:
                    raise GroupAborted(f"{self.name} could not be made: {error}") from error

    def _arrange(
        self,
        store: dist.Store,
        prefix: str,
        arrivals: list[str],
        generations: Iterator[int],
        timeout_s: float,
        look: Callable[[], None],
    ) -> bytes:
        """The leader's part of a meeting: which generation of the group they go on with."""
        try:
            came = [value.decode().split() for value in rendezvous.wait(store, arrivals, timeout_s, look)]
        except CalledOff as off:
            self._past.append(prefix)
            _call_off(store, prefix, str(off))
            raise
        except TimeoutError:
            missing = [s for s, key in zip(self.slots, arrivals, strict=True) if not store.check([key])]
            answer = f"missing {' '.join(map(str, missing))}"
        else:
            held = {generation for generation, _ in came}
            agreed = held == {str(self._generation)} and self._generation > 0
            generation = self._generation if agreed else next(generations)
            answer = f"{generation} {' '.join(port for _, port in came)}"
            # All are here, so nobody reads what was written for earlier meetings any more.
            rendezvous.clear(store, *self._past, f"{self.name}/g")
            self._past.clear()
        self._past.append(prefix)
        # It may have been called off in this very moment: the first word counts.
        return store.compare_set(f"{prefix}go", "", answer)

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


class Groups:
    """The groups of one executor: its own store, and a bounded cache of groups.

    Args:
        device: "cpu" (gloo) or "cuda[:n]" (NCCL).
        host: the address that the store and gloo listen on, and that peers reach them at.
        timeout_s: how long a collective waits for a silent peer before it fails.
        limit: how many groups are kept; the one used least recently goes first.
    """

    def __init__(
        self,
        device: torch.device | str = "cpu",
        host: str = "127.0.0.1",
        *,
        timeout_s: float = 30.0,
        limit: int = 32,
    ) -> None:
        self._device = torch.device(device)
        self._world = World(self._device, host, timeout_s)
        self._server = rendezvous.StoreServer(host)
        self._clients: dict[str, dist.Store] = {}
        self._limit = limit
        self._groups: OrderedDict[str, Group] = OrderedDict()
        self._ended: list[Group] = []
        # Keys of ended groups stay a while in the store, for members that have yet to read that it ended.
        self._litter: deque[str] = deque()
        self._called_off: deque[str] = deque()
        self._lost: dict[int, int] = {}
        self._oldest = 0
        self._lock = threading.Lock()
        # Shared by all groups that this executor leads, so that no name in its store is used twice.
        self._generations = itertools.count(1)

    @property
    def store_address(self) -> str:
        """Where this executor's own store is: "host:port"; it tells this executor from others in a group."""
        return self._server.address

    def __len__(self) -> int:
        return len(self._groups)

    def get(
        self,
        epoch: int,
        members: Sequence[Member],
        meeting: str,
        *,
        timeout_s: float = 60.0,
        check: Callable[[], None] = lambda: None,
    ) -> Group:
        """The group of `members`, after all of them have come to the meeting of this name.

        Args:
            epoch: as the scheduler gave it.
            members: the leader first; the same sequence on all members.
            meeting: what they meet for, the order's id; the same on all members and used once.
            timeout_s: how long to wait for members that have not come; long enough for the orders that
                they still have before them.
            check: the leader calls it while it waits; by raising CalledOff it calls the meeting off.

        Raises:
            CalledOff: by one of the members; the group stays as it is.
            GroupAborted: a member did not come, is lost, or the group was dropped meanwhile.
            ValueError: this executor is not a member, or one is there twice.
        """
        members = tuple(members)
        addresses = [m.store for m in members]
        if self.store_address not in addresses:
            raise ValueError(f"{self.store_address} is not in the group {[m.slot for m in members]}")
        if len(set(addresses)) != len(members) or len({m.slot for m in members}) != len(members):
            raise ValueError(f"a member is twice in the group {[m.slot for m in members]}")
        self._close_ended()
        group = self._enter(Group(epoch, members, addresses.index(self.store_address), self._world))
        if group.degree > 1:
            try:
                with group._faults(lost_at_timeout=group.slots[:1]):
                    store = self._store_of(members)
                    group._meet(store, meeting, self._generations, timeout_s, check)
            except CalledOff:
                raise
            except BaseException:
                self._leave(group)
                raise
        return group

    def call_off(self, epoch: int, members: Sequence[Member], meeting: str, reason: str) -> None:
        """Call a meeting off, for all members; one to which all have come takes place all the same.

        The leader may, from any thread. Another member only before it goes to the meeting, and on the
        thread that uses groups.

        Raises:
            ConnectionError: the leader's store does not answer.
        """
        prefix = f"{_name(epoch, members)}/m{meeting}/"
        with _connection_errors():
            _call_off(self._store_of(members), prefix, reason)
        if members[0].store == self.store_address:
            self._called_off.append(prefix)
            if len(self._called_off) > _REMEMBERED:
                rendezvous.clear(self._server.store, self._called_off.popleft())

    def called_off(self, epoch: int, members: Sequence[Member], meeting: str) -> str:
        """Why a meeting is called off; empty where it is not.

        Raises:
            ConnectionError: the leader's store does not answer.
        """
        with _connection_errors():
            return _called_off(self._store_of(members), f"{_name(epoch, members)}/m{meeting}/")

    def warm_up(self, epoch: int, members: Sequence[Member], meeting: str, *, timeout_s: float = 60.0) -> int:
        """Make all aligned power-of-two groups among `members` that this executor is in, and use each once.

        A first collective costs NCCL 0.2 to 0.8 s and some 500 MB; a warmed one less than 1 ms. All
        members call it at the same time, with `members` in the order of their places in the node.

        Returns:
            How many groups were warmed.
        """
        blocks = [b for b in aligned_blocks(members) if self.store_address in {m.store for m in b}]
        for block in blocks:
            group = self.get(epoch, block, f"{meeting}.{len(block)}", timeout_s=timeout_s)
            with group.running():
                sent = torch.zeros(group.degree, device=self._device)
                dist.all_to_all_single(torch.empty_like(sent), sent, group=group.pg)
                if sent.is_cuda:
                    torch.cuda.synchronize(sent.device)
        return len(blocks)

    def drop(self, before_epoch: int, slots: Sequence[int] | None = None) -> int:
        """Abort the groups of epochs before this one that contain one of the slots (None: all of them).

        Any thread may call it. Groups asked for later that it would have aborted fail at once.

        Returns:
            How many groups were aborted.
        """
        with self._lock:
            if slots is None:
                self._oldest = max(before_epoch, self._oldest)
            for slot in slots or ():
                self._lost[slot] = max(before_epoch, self._lost.get(slot, 0))
            gone = [
                g
                for g in self._groups.values()
                if g.epoch < before_epoch and (slots is None or set(slots) & set(g.slots))
            ]
            for group in gone:
                del self._groups[group.name]
            self._ended += gone
        for group in gone:
            group.abort(f"epoch {before_epoch} began", slots or ())
        return len(gone)

    def reset(self) -> None:
        """Abort all groups and forget all that was said of epochs: a new scheduler may count from the
        beginning. Any thread; before this executor registers again."""
        with self._lock:
            gone = list(self._groups.values())
            self._groups.clear()
            self._ended += gone
            self._lost.clear()
            self._oldest = 0
        for group in gone:
            group.abort("the scheduler that made it is gone")
        rendezvous.clear(self._server.store, "sp/")

    def close(self) -> None:
        """Leave all groups and stop the store; on the thread that uses them."""
        with self._lock:
            self._ended += self._groups.values()
            self._groups.clear()
        self._close_ended()
        self._clients.clear()
        self._world.close()

    def _enter(self, candidate: Group) -> Group:
        with self._lock:
            lost = [slot for slot in candidate.slots if self._lost.get(slot, 0) > candidate.epoch]
            if lost or candidate.epoch < self._oldest:
                raise GroupAborted(f"{candidate.name} is of an epoch that is over, lost slots {lost}", lost)
            known = self._groups.get(candidate.name)
            if known and known.members == candidate.members and not known.aborted:
                self._groups.move_to_end(known.name)
                return known
            if known:
                self._ended.append(known)
            self._groups[candidate.name] = candidate
            self._groups.move_to_end(candidate.name)
            while len(self._groups) > self._limit:
                self._ended.append(self._groups.popitem(last=False)[1])
        self._close_ended()
        return candidate

    def _leave(self, group: Group) -> None:
        with self._lock:
            if self._groups.get(group.name) is group:
                del self._groups[group.name]
                self._ended.append(group)

    def _close_ended(self) -> None:
        with self._lock:
            ended, self._ended = self._ended, []
        for group in ended:
            group._close()
            # What failed may have left an exchange with the leader's store half done.
            self._clients.pop(group.members[0].store, None)
            if group.leads and group.degree > 1:
                self._litter.append(group.name)
        while len(self._litter) > self._limit:
            name = self._litter.popleft()
            if name not in self._groups and name not in self._litter:
                rendezvous.clear(self._server.store, f"{name}/")

    def _store_of(self, members: Sequence[Member]) -> dist.Store:
        """Their leader's store, where they meet."""
        address = members[0].store
        if address == self.store_address:
            return self._server.store
        if address not in self._clients:
            self._clients[address] = rendezvous.connect(address)
        return self._clients[address]


def _name(epoch: int, members: Sequence[Member]) -> str:
    return f"sp/e{epoch}/{'-'.join(str(m.slot) for m in members)}"


def _call_off(store: dist.Store, prefix: str, reason: str) -> None:
    store.compare_set(f"{prefix}go", "", f"off {reason or 'without a reason'}")


def _called_off(store: dist.Store, prefix: str) -> str:
    if not store.check([f"{prefix}go"]):
        return ""
    verdict, _, reason = store.get(f"{prefix}go").decode().partition(" ")
    return reason if verdict == "off" else ""


@contextmanager
def _connection_errors() -> Iterator[None]:
    try:
        yield
    except dist.DistError as error:
        raise ConnectionError(str(error)) from error


def aligned_blocks(members: Sequence[Member]) -> list[tuple[Member, ...]]:
    """The aligned power-of-two blocks of two or more of `members`, the largest first.

    Eight members give {0-7}, {0-3}, {4-7}, {0,1}, {2,3}, {4,5} and {6,7}.
    """
    blocks: list[tuple[Member, ...]] = []
    size = 1 << len(members).bit_length() >> 1
    while size > 1:
        blocks += [tuple(members[i : i + size]) for i in range(0, len(members) - size + 1, size)]
        size //= 2
    return blocks
