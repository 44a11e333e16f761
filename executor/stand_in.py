"""A group of which only one member is there: what that member computes in a step can be measured alone.

Its collectives are copies within the device, of the same sizes; what they would have sent is counted, so
that the time on a link can be reckoned. Results are no pictures.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch._C import _distributed_c10d
from torch.futures import Future

from executor.group import Group, Member
from executor.process_group import World

_names = itertools.count(1)


@dataclass
class Traffic:
    """What one member sends: how often, and bytes."""

    collectives: int = 0
    nbytes: int = 0


class StandIn(Group):
    """A group as its member `rank` sees it, without the others. See `Groups.stand_in`.

    `traffic` counts what this member has sent; `close` it when done.
    """

    def __init__(self, degree: int, rank: int, world: World) -> None:
        super().__init__(0, tuple(Member(slot, f"nobody:{slot}") for slot in range(degree)), rank, world)
        self.name = f"stand-in/{next(_names)}"
        self.traffic = Traffic()
        if degree > 1:
            self._link("all", rank, degree)

    def close(self) -> None:
        """Free it."""
        self._close()

    def _link(self, part: str, rank: int, size: int) -> dist.ProcessGroup:
        pg = _Copies(rank, size, f"{self.name}/{part}", self.traffic)
        self._links.append(self._world.adopt(pg, pg.pg_name))
        return pg


class _Copies(dist.ProcessGroup):
    """Collectives without peers: what would be received is a copy of what is sent.

    torch calls these methods also from C++, by these names (2.13).
    """

    def __init__(self, rank: int, size: int, name: str, traffic: Traffic) -> None:
        super().__init__(rank, size)
        self._name = name
        self._traffic = traffic

    @property
    def pg_name(self) -> str:
        return self._name

    @property
    def group_name(self) -> str:
        return self._name

    def getBackendName(self) -> str:
        return "copies"

    def all_to_all_single(
        self,
        received: torch.Tensor,
        sent: torch.Tensor,
        received_sizes: Any,  # noqa: ARG002
        sent_sizes: Any,  # noqa: ARG002
        options: Any = None,  # noqa: ARG002
    ) -> dist.Work:
        received.view(-1).copy_(sent.reshape(-1))
        self._count(sent.nbytes * (self.size() - 1) // self.size())
        return _done()

    def all_gather_single(
        self,
        received: torch.Tensor,
        sent: torch.Tensor,
        options: Any = None,  # noqa: ARG002
    ) -> dist.Work:
        received.view(self.size(), -1).copy_(sent.reshape(1, -1).expand(self.size(), -1))
        self._count(sent.nbytes * (self.size() - 1))
        return _done()

    def all_gather_single_coalesced(
        self, received: list[torch.Tensor], sent: list[torch.Tensor], options: Any = None
    ) -> dist.Work:
        for target, source in zip(received, sent, strict=True):
            self.all_gather_single(target, source, options)
        return _done()

    def shutdown(self) -> None:
        pass

    def abort(self) -> None:
        pass

    def _count(self, nbytes: int) -> None:
        self._traffic.collectives += 1
        self._traffic.nbytes += nbytes


def _done() -> dist.Work:
    # Without the tensors: a future made on the CPU refuses those of a GPU.
    future: Future[None] = Future()
    future.set_result(None)
    return _distributed_c10d._create_work_from_future(future)  # type: ignore[attr-defined]
