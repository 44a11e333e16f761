"""Steps that cost next to nothing, because a step cache uses an output again: plans count the others.

To a policy a request has as many steps as will be computed; an order of some of them ends just before
the next one after. So policies need not know.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence

Computed = Callable[[int], Sequence[int]]
"""The steps, ascending, that are computed of so many; the last always is."""


def left(computed: Sequence[int], first: int) -> int:
    """Computed steps from `first` on."""
    return len(computed) - bisect_left(computed, first)


def reach(computed: Sequence[int], first: int, count: int) -> int:
    """Steps of an order from `first` on in which `count` are computed, with the cheap ones after them."""
    beyond = bisect_left(computed, first) + count
    end = computed[beyond] if beyond < len(computed) else computed[-1] + 1
    return end - first


def shared(members: Iterable[tuple[Sequence[int], int]]) -> Sequence[int]:
    """Steps, from 0, that are computed for any of those who share them, until the first of them is through.

    `members` are each one's computed steps and its next step.
    """
    members = list(members)
    end = min(computed[-1] + 1 - first for computed, first in members)
    return sorted(
        {step - first for computed, first in members for step in computed if 0 <= step - first < end}
    )
