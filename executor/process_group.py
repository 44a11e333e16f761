"""torch process groups made by their members alone, and taken apart at will.

torch's public API makes groups out of one world that every process joins at the start and that dies
with any of them. Here each process is a world of its own, and a group is what its members agree on by
name. That is private API of torch; all of it is in this file and in collectives.py, and torch is pinned.

Two more things that torch does not offer for gloo are done through the sockets of a group, which this
module knows: `Link.cut` fails within milliseconds what blocks in the group on this member, or on another
that waits for it (gloo's own `abort` and `shutdown` leave a blocked collective blocked), and `Link.broken`
says whether a peer is gone, without taking part in anything; see also collectives.py.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

from executor.collectives import Collectives, GlooCollectives

# How long members may take to connect once all have agreed to make a group; nothing can interrupt it.
CONNECT_TIMEOUT_S = 10.0


class Link:
    """One process group as one member holds it."""

    def __init__(self, pg: dist.ProcessGroup, sockets: list[socket.socket]) -> None:
        self.pg = pg
        # Duplicates of gloo's descriptors: valid even after gloo has closed its own.
        self._sockets = sockets
        self._aborting = False

    def broken(self) -> bool:
        """Whether a peer is gone, or the link cut. Never blocks; always False on NCCL, without a sign."""
        return _broken(self._sockets)

    def cut(self) -> None:
        """Fail what blocks in this group here, or waits for this member. Any thread, any number of times.

        On gloo it takes milliseconds. On NCCL the communicator is aborted in a thread of its own, since
        that has been seen to hang where a kernel is stuck.
        """
        for s in self._sockets:
            with contextlib.suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)
        if isinstance(self.pg, Collectives):
            self.pg.abort()
        elif not self._aborting:
            self._aborting = True
            threading.Thread(target=self.pg.abort, name="abort", daemon=True).start()

    def close(self) -> None:
        """Cut, and free what torch and the system hold for the group. Once, and not while it is in use."""
        self.cut()
        dist.destroy_process_group(self.pg)
        for s in self._sockets:
            s.close()
        self._sockets = []


class World:
    """This process as a world of one rank, and the maker of its groups.

    Args:
        device: where the tensors live; "cpu" means gloo, "cuda" NCCL.
        host: the address that gloo listens on, and no other.
        timeout_s: how long a collective waits for a peer that is there but silent.
    """

    def __init__(self, device: torch.device, host: str, timeout_s: float) -> None:
        if dist.is_initialized():
            raise RuntimeError("this process has a torch.distributed world already")
        self._device = device
        self._timeout = timedelta(seconds=timeout_s)
        before = _own_sockets()
        self._gloo = dist.ProcessGroupGloo.create_device(hostname=host)
        # Zero where it cannot be seen: then a blocked collective ends by its time-out only.
        self.port = next((port for fd in _own_sockets() - before if (port := _listening_port(fd))), 0)
        if device.type == "cuda":
            # A failed collective must not take the process down: the group is cut and made anew.
            os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "2")
        # xfuser's ring asks torch for the rank in the default group, so there must be one.
        pg = self._register("world", dist.HashStore(), 0, 1, self._gloo_backend(dist.HashStore(), 0, 1))
        c10d._update_default_pg(pg)

    def create(self, name: str, store: dist.Store, rank: int, size: int, ports: Iterable[int]) -> Link:
        """Make the group `name` with its other members, who make it at the same time over the same store.

        Args:
            name: never used before in this store.
            store: where the members find each other.
            rank: of this member in the group.
            size: of the group.
            ports: `World.port` of the members; they tell the group's sockets from others.
        """
        prefixed = dist.PrefixStore(f"{name}/", store)
        if self._device.type == "cuda":
            options = dist.ProcessGroupNCCL.Options()
            options._timeout = self._timeout
            backend: dist.Backend = dist.ProcessGroupNCCL(prefixed, rank, size, options)
            return Link(self._register(name, prefixed, rank, size, backend), [])
        before = _own_sockets()
        backend = self._gloo_backend(prefixed, rank, size)
        fresh = _own_sockets() - before
        sockets = [s for fd in fresh if (s := _gloo_socket(fd, self.port, frozenset(ports)))]
        pg = GlooCollectives(backend, name, broken=lambda: _broken(sockets))
        return self.adopt(pg, sockets)

    def adopt(self, pg: Collectives, sockets: Iterable[socket.socket] = ()) -> Link:
        """Let torch know a process group in Python, whose name was never used before."""
        c10d._register_pg_in_world(
            pg,
            backend_name="gloo",
            store=dist.HashStore(),
            group_name=pg.group_name,
            backend_config="cpu:gloo",
            rank_mapping={(peer - pg.rank()) % pg.size(): peer for peer in range(pg.size())},
        )
        return Link(pg, list(sockets))

    def close(self) -> None:
        """Leave the world; every link must be closed before."""
        dist.destroy_process_group()

    def _gloo_backend(self, store: dist.Store, rank: int, size: int) -> dist.Backend:
        options = dist.ProcessGroupGloo._Options()
        options._devices = [self._gloo]
        options._timeout = timedelta(seconds=CONNECT_TIMEOUT_S)
        # One step at a time runs on a device, so one thread a group is enough (torch's default is two).
        options._threads = 1
        backend = dist.ProcessGroupGloo(store, rank, size, options)
        backend.set_timeout(self._timeout)
        return backend

    def _register(
        self, name: str, store: dist.Store, rank: int, size: int, backend: dist.Backend
    ) -> dist.ProcessGroup:
        on_gpu = isinstance(backend, getattr(dist, "ProcessGroupNCCL", ()))
        kind = dist.ProcessGroup.BackendType.NCCL if on_gpu else dist.ProcessGroup.BackendType.GLOO
        device = self._device if on_gpu else torch.device("cpu")
        pg = dist.ProcessGroup(store, rank, size)
        pg._set_default_backend(kind)
        pg._register_backend(device, kind, backend)
        pg._set_group_name(name)
        c10d._register_pg_in_world(
            pg,
            backend_name="nccl" if on_gpu else "gloo",
            store=store,
            group_name=name,
            backend_config=f"{device.type}:{'nccl' if on_gpu else 'gloo'}",
            # In the world of one, this process is rank 0 and its peers have no rank; torch wants a
            # number for each, and asks only for ours.
            rank_mapping={(peer - rank) % size: peer for peer in range(size)},
        )
        return pg


def is_communication_error(error: BaseException) -> bool:
    """Whether a collective failed (a peer is gone, silent or has cut the group), not the computation."""
    if isinstance(error, dist.DistError):
        return True
    # gloo throws bare runtime errors; the source file is the one thing that tells them apart.
    return isinstance(error, RuntimeError) and "gloo/" in str(error)


def _own_sockets() -> set[tuple[int, int]]:
    """Descriptor and inode of every socket of this process; a reused descriptor has a new inode."""
    found = set()
    for name in os.listdir("/dev/fd"):
        with contextlib.suppress(OSError):
            status = os.fstat(int(name))
            if (status.st_mode & 0o170000) == 0o140000:
                found.add((int(name), status.st_ino))
    return found


def _duplicate(fd: int) -> socket.socket | None:
    try:
        return socket.socket(fileno=os.dup(fd))
    except OSError:
        return None


def _listening_port(found: tuple[int, int]) -> int | None:
    duplicate = _duplicate(found[0])
    if duplicate is None:
        return None
    with duplicate:
        if duplicate.family not in (socket.AF_INET, socket.AF_INET6):
            return None
        listening = duplicate.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        return int(duplicate.getsockname()[1]) if listening else None


def _gloo_socket(found: tuple[int, int], own_port: int, ports: frozenset[int]) -> socket.socket | None:
    """A duplicate of the descriptor where it is a connection between gloo devices, else None."""
    duplicate = _duplicate(found[0])
    if duplicate is None:
        return None
    with contextlib.suppress(OSError):
        if duplicate.family in (socket.AF_INET, socket.AF_INET6) and (
            duplicate.getsockname()[1] == own_port or duplicate.getpeername()[1] in ports
        ):
            return duplicate
    duplicate.close()
    return None


def _broken(sockets: Iterable[socket.socket]) -> bool:
    return any(_at_end(s) for s in sockets)


def _at_end(s: socket.socket) -> bool:
    try:
        return s.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
