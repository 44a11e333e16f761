"""Where degrees go: aligned power-of-two blocks of slots, keeping requests where they are.

Aligned blocks nest (a buddy system), so a set of degrees fits exactly when, for every size k, the
degrees of at least k fill no more than the free blocks of k; see `Blocks.fits`. Sets of slots are
bit masks here, because policies ask thousands of times a plan.
"""

from collections import Counter
from collections.abc import Container, Hashable, Iterable, Iterator
from functools import lru_cache

from scheduler.problem import ROLES, Gpu, Stage


def mask_of(slots: Iterable[int]) -> int:
    """The slots as a bit mask."""
    mask = 0
    for slot in slots:
        mask |= 1 << slot
    return mask


def narrowed(block: int, degree: int) -> int:
    """The part of a block that has its leader and `degree` slots."""
    return (block & -block) * ((1 << degree) - 1)


class Layout:
    """The aligned blocks of a set of slots, each within one site (a node, or an island of one).

    `lone` slots do not denoise: they are blocks of one, and part of no wider ones.
    """

    def __init__(self, sites: Iterable[tuple[int, Hashable]], lone: Container[int] = ()) -> None:
        node = dict(sites)
        self.slots: tuple[int, ...] = tuple(sorted(node))
        self.blocks: dict[int, tuple[int, ...]] = {}
        """Masks of the blocks of each degree, ascending; a degree without any is absent."""
        self.members: dict[int, tuple[int, ...]] = {}
        """Slots of each block."""
        self.parent: dict[int, int] = {}
        """The block of twice the degree that each block is half of, where there is one."""
        self.halves: dict[int, tuple[int, int]] = {}
        """The two halves of each block of at least two slots, narrow blocks first."""
        degree = 1
        found: list[tuple[int, ...]] = [(slot,) for slot in self.slots]
        while found:
            masks = [mask_of(block) for block in found]
            self.blocks[degree] = tuple(masks)
            self.members.update(zip(masks, found, strict=True))
            whole = {block[0]: block for block in found if block[0] not in lone}
            found = []
            for first, block in whole.items():
                buddy = whole.get(first + degree)
                if first % (2 * degree) == 0 and buddy and node[first] == node[buddy[0]]:
                    found.append(block + buddy)
                    both = mask_of(found[-1])
                    low, high = mask_of(block), mask_of(buddy)
                    self.parent[low] = self.parent[high] = both
                    self.halves[both] = low, high
            degree *= 2
        self.max_degree = max(self.blocks, default=0)
        within = {mask: [mask] for mask in self.members}
        for mask, (low, high) in self.halves.items():
            within[mask] += within[low] + within[high]
        self.overlapping: dict[int, tuple[int, ...]] = {
            mask: (*parts, *self._above(mask)) for mask, parts in within.items()
        }
        """The blocks that share slots with each, itself among them."""

    def _above(self, block: int) -> Iterator[int]:
        while block in self.parent:
            block = self.parent[block]
            yield block

    def room(self, block: int, free: int) -> int:
        """Size of the largest block of `free` slots that contains this one."""
        above = self.parent.get(block)
        while above is not None and above & free == above:
            block, above = above, self.parent.get(above)
        return block.bit_count()

    def find(self, degree: int, free: int, held: int = 0) -> int | None:
        """The block of `free` slots that best keeps a request on the slots it has `held`, or None.

        Among equals the one whose buddies are taken: it breaks up the fewest larger blocks.
        """
        best, best_rank = None, (-1, -1)
        for block in self.blocks.get(degree, ()):
            if block & free == block:
                rank = ((block & held).bit_count(), -self.room(block, free))
                if rank > best_rank:
                    best, best_rank = block, rank
        return best


@lru_cache(maxsize=256)
def _layout(sites: tuple[tuple[int, Hashable], ...], lone: frozenset[int]) -> Layout:
    return Layout(sites, lone)


def layout_of(gpus: Iterable[Gpu]) -> Layout:
    """The layout of these GPUs; shared, so that a fleet's is computed once."""
    gpus = tuple(gpus)
    lone = frozenset(gpu.slot for gpu in gpus if Stage.DENOISING not in gpu.roles)
    return _layout(tuple((gpu.slot, (gpu.node, gpu.island)) for gpu in gpus), lone)


def able(gpus: Iterable[Gpu]) -> dict[Stage, int]:
    """Mask of the slots that can run each stage."""
    gpus = tuple(gpus)
    return {role: mask_of(gpu.slot for gpu in gpus if role in gpu.roles) for role in ROLES}


class Blocks:
    """Free slots that are handed out in aligned blocks, each within one node."""

    def __init__(self, gpus: Iterable[Gpu]) -> None:
        gpus = tuple(gpus)
        self._layout = layout_of(gpus)
        self._able = able(gpus)
        self._free = mask_of(self._layout.slots)

    @property
    def free(self) -> set[int]:
        """Slots that are not handed out."""
        return {slot for slot in self._layout.slots if self._free >> slot & 1}

    def every(self, degree: int) -> list[tuple[int, ...]]:
        """All blocks of `degree` slots that can denoise, free or not, ascending."""
        layout, slots = self._layout, self._able[Stage.DENOISING]
        return [layout.members[b] for b in layout.blocks.get(degree, ()) if b & slots == b]

    def available(self, degree: int) -> list[tuple[int, ...]]:
        """The free ones of `every`."""
        return [block for block in self.every(degree) if mask_of(block) & ~self._free == 0]

    def fits(self, degrees: Iterable[int]) -> bool:
        """Whether blocks of all these degrees (powers of two) can be taken together."""
        wanted = Counter(degrees)
        return all(
            sum(n * (k // size) for k, n in wanted.items() if k >= size) <= len(self.available(size))
            for size in wanted
        )

    def find(
        self, degree: int, held: Iterable[int] = (), stage: Stage = Stage.DENOISING
    ) -> tuple[int, ...] | None:
        """The free block for `stage` that best keeps a request on the slots it has `held`, or None."""
        block = self._layout.find(degree, self._free & self._able[stage], mask_of(held))
        return None if block is None else self._layout.members[block]

    def take(self, block: Iterable[int]) -> None:
        """Hand a block out. ValueError where a slot is not free: two orders would share it."""
        mask = mask_of(block)
        if mask & ~self._free:
            raise ValueError(f"slots {tuple(block)} are not all free")
        self._free &= ~mask
