"""The groups of one executor.

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
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist

from executor import rendezvous
from executor.group import Group, GroupAborted, Member, Split, group_name
from executor.meeting import CalledOff, Meeting
from executor.process_group import World
from executor.stand_in import StandIn

__all__ = ["CalledOff", "Group", "GroupAborted", "Groups", "Member", "Split"]

# Meetings called off whose members may not have read it yet.
_REMEMBERED = 256


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
        # Where ended groups wrote: it stays a while, for members that have yet to read how a meeting ended.
        self._litter: OrderedDict[str, list[str]] = OrderedDict()
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
            check: every member calls it before it comes, the leader while it waits, too; by raising CalledOff
                it calls the meeting off.

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
            # What `reset` ends is marked before: either the group was there for it to abort, or it shows now.
            check()
            try:
                with group._faults():
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
        with self._exchange(members) as store:
            off = Meeting(store, group_name(epoch, members), meeting)
            off.call_off(reason)
        if members[0].store == self.store_address:
            self._called_off.append(off.prefix)
            if len(self._called_off) > _REMEMBERED:
                rendezvous.clear(self._server.store, self._called_off.popleft())

    def called_off(self, epoch: int, members: Sequence[Member], meeting: str) -> str:
        """Why a meeting is called off; empty where it is not.

        Raises:
            ConnectionError: the leader's store does not answer.
        """
        with self._exchange(members) as store:
            return Meeting(store, group_name(epoch, members), meeting).called_off()

    def stand_in(self, degree: int, rank: int) -> StandIn:
        """A group of which only the member of this rank is there: its share of a step can be measured."""
        return StandIn(degree, rank, self._world)

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
            # All keys go now: clearing them later could hit the meetings of the new scheduler.
            self._litter.clear()
            for group in self._ended:
                group._past.clear()
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
            # What came before is read by nobody once the members have met again.
            candidate._past = self._litter.pop(candidate.name, []) + (known._past if known else [])
            # A group of an epoch that is over will not be asked for again, and NCCL's cost memory.
            outdated = [
                g for g in self._groups.values() if g.slots == candidate.slots and g.epoch < candidate.epoch
            ]
            self._ended += [self._groups.pop(g.name) for g in outdated]
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
            for group in [g for g in self._groups.values() if g.aborted]:
                self._ended.append(self._groups.pop(group.name))
            ended, self._ended = self._ended, []
        for group in ended:
            group._close()
            # What failed may have left an exchange with the leader's store half done (see _exchange).
            self._clients.pop(group.members[0].store, None)
            with self._lock:
                if group.leads and group.degree > 1 and group.name not in self._groups:
                    self._litter.setdefault(group.name, []).extend(group._past)
                forgotten = [self._litter.popitem(last=False)] if len(self._litter) > self._limit else []
            for name, past in forgotten:
                rendezvous.clear(self._server.store, *past, f"{name}/g")

    def _store_of(self, members: Sequence[Member]) -> dist.Store | rendezvous.RemoteStore:
        """Their leader's store, where they meet."""
        address = members[0].store
        if address == self.store_address:
            return self._server.store
        if address not in self._clients:
            self._clients[address] = rendezvous.connect(address)
        return self._clients[address]

    @contextmanager
    def _exchange(self, members: Sequence[Member]) -> Iterator[dist.Store | rendezvous.RemoteStore]:
        """Their leader's store, with its troubles as ConnectionError."""
        try:
            yield self._store_of(members)
        except (ConnectionError, dist.DistError) as error:
            # A silent one stays so: its late answer would be taken for that to the next question.
            self._clients.pop(members[0].store, None)
            raise ConnectionError(str(error)) from error
