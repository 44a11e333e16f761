"""Where degrees go: aligned power-of-two blocks of slots, keeping requests where they are.

Aligned blocks nest (a buddy system), so a set of degrees fits exactly when, for every size k, the
degrees of at least k fill no more than the free blocks of k; see `Blocks.fits`.
"""

from collections import Counter
from collections.abc import Iterable, Mapping

from scheduler.problem import Gpu


def blocks_of(slots: Iterable[int], degree: int) -> list[tuple[int, ...]]:
    """The aligned blocks of `degree` slots that lie wholly in `slots`, ascending."""
    count = Counter(slot // degree for slot in slots)
    return [
        tuple(range(b * degree, (b + 1) * degree)) for b in sorted(b for b, n in count.items() if n == degree)
    ]


class Blocks:
    """Free slots that are handed out in aligned blocks, each within one node."""

    def __init__(self, gpus: Iterable[Gpu]) -> None:
        self._node: Mapping[int, str] = {gpu.slot: gpu.node for gpu in gpus}
        self.free: set[int] = set(self._node)

    def available(self, degree: int) -> list[tuple[int, ...]]:
        """The free blocks of `degree` slots, ascending."""
        if degree == 1:
            return [(slot,) for slot in sorted(self.free)]
        return [b for b in blocks_of(self.free, degree) if len({self._node[slot] for slot in b}) == 1]

    def fits(self, degrees: Iterable[int]) -> bool:
        """Whether blocks of all these degrees (powers of two) can be taken together."""
        wanted = Counter(degrees)
        sizes = sorted(wanted, reverse=True)
        return all(
            sum(n * (k // size) for k, n in wanted.items() if k >= size) <= len(self.available(size))
            for size in sizes
        )

    def find(self, degree: int, held: Iterable[int] = ()) -> tuple[int, ...] | None:
        """The free block that best keeps a request on the slots it has `held`, or None.

        Among equals the one whose buddies are taken: it breaks up the fewest larger blocks.
        """
        held = set(held)
        best, best_rank = None, (-1, -1)
        for block in self.available(degree):
            rank = (len(held.intersection(block)), -self._free_buddies(block))
            if rank > best_rank:
                best, best_rank = block, rank
        return best

    def take(self, block: Iterable[int]) -> None:
        """Hand a block out."""
        self.free.difference_update(block)

    def _free_buddies(self, block: tuple[int, ...]) -> int:
        """Size of the largest free aligned block that contains this one."""
        size = len(block)
        while True:
            first = block[0] // (2 * size) * (2 * size)
            around = range(first, first + 2 * size)
            if not self.free.issuperset(around) or len({self._node[slot] for slot in around}) > 1:
                return size
            size *= 2
