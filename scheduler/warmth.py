"""Which groups have been made and used once: the first use costs NCCL seconds and memory, later ones nothing.

Groups are known by their slots, leader first, and their epoch, as in their names; a group of another epoch
is another one. Policies place groups on aligned blocks within an island, so a slot whose groups are cold is
shown to them as an island of its own.
"""

from collections.abc import Callable, Container, Iterator

from scheduler.placement import Layout

ATTEMPTS = 2
WARM_UP_S = 1.0
"""How long warming one group is taken to last."""

Slots = tuple[int, ...]


class Warmth:
    """The warm groups of a fleet. `epoch_of` tells the epoch that a group of some slots has now."""

    def __init__(self, epoch_of: Callable[[Slots], int]) -> None:
        self._epoch_of = epoch_of
        self._warm: dict[Slots, int] = {}
        self._tries: dict[Slots, tuple[int, int]] = {}  # epoch and how often

    def note(self, slots: Slots, epoch: int) -> None:
        """A group has been used."""
        self._warm[slots] = epoch

    def cold(self, layout: Layout, under_way: Container[Slots]) -> Iterator[Slots]:
        """Slots of the groups to warm now, narrow ones first, but those `under_way`. One that has failed is
        given ATTEMPTS times in all."""
        for degree, blocks in layout.blocks.items():
            for slots in (layout.members[block] for block in blocks if degree > 1):
                epoch = self._epoch_of(slots)
                before, tries = self._tries.get(slots, (epoch, 0))
                tries = tries if before == epoch else 0
                if not self._is_warm(slots) and slots not in under_way and tries < ATTEMPTS:
                    self._tries[slots] = epoch, tries + 1
                    yield slots

    def sites(self, layout: Layout) -> dict[int, str]:
        """For each slot a name that it shares with those with which all of its groups are warm."""
        site = {slot: str(slot) for slot in layout.slots}
        whole = set(layout.blocks.get(1, ()))
        for degree, blocks in layout.blocks.items():
            for block in blocks if degree > 1 else ():
                slots = layout.members[block]
                if self._is_warm(slots) and whole.issuperset(layout.halves[block]):
                    whole.add(block)
                    site.update(dict.fromkeys(slots, f"{slots[0]}+{degree}"))
        return site

    def _is_warm(self, slots: Slots) -> bool:
        return self._warm.get(slots) == self._epoch_of(slots)
