"""A group of which only one member is there: what that member computes in a step can be measured alone.

Its collectives are copies within the device, of the same sizes; what they would have sent is counted, so
that the time on a link can be reckoned. Results are no pictures.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
import torch.distributed as dist

from executor.collectives import Collectives
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
        self._links.append(self._world.adopt(pg))
        return pg


class _Copies(Collectives):
    """Collectives without peers: what would be received is a copy of what is sent."""

    def __init__(self, rank: int, size: int, name: str, traffic: Traffic) -> None:
        super().__init__(rank, size, name)
        self._traffic = traffic

    def exchange(self, received: torch.Tensor, sent: torch.Tensor) -> None:
        received.view(-1).copy_(sent.reshape(-1))
        self._count(sent.nbytes * (self.size() - 1) // self.size())

    def gather(self, received: torch.Tensor, sent: torch.Tensor) -> None:
        received.view(self.size(), -1).copy_(sent.reshape(1, -1).expand(self.size(), -1))
        self._count(sent.nbytes * (self.size() - 1))

    def _count(self, nbytes: int) -> None:
        self._traffic.collectives += 1
        self._traffic.nbytes += nbytes
