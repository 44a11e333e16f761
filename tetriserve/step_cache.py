"""Which denoising steps a model with a step cache computes; the others use the last output again.

Scheduler and executors both go by this. It depends on nothing but the number of steps, so that a picture
never depends on the schedule.
"""

from collections.abc import Sequence
from functools import lru_cache

HEAD, TAIL = 0.2, 0.1
"""Shares of the steps that are always computed: the first lay out the picture, the last finish it."""


@lru_cache(maxsize=1024)
def computed(steps: int, every: int) -> Sequence[int]:
    """The steps that are computed where in the middle only each `every`-th is; ascending."""
    if every <= 1:
        return range(steps)
    head, tail = max(1, round(HEAD * steps)), max(1, round(TAIL * steps))
    return tuple(
        step for step in range(steps) if step < head or step >= steps - tail or (step - head) % every == 0
    )
