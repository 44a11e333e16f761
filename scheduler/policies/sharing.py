"""Which batches are worth it, by size: where one more picture costs fewer GPU-seconds than it does alone."""

import math
from functools import lru_cache

from scheduler.policies.mix import TOLERANCE
from scheduler.profile import Profile

LEAST_SAVING = 0.05
"""Who joins a batch must save this share, at least, of the GPU-seconds that its step takes alone."""

Lanes = dict[int, tuple[float, ...]]
"""By degree, the seconds of a step of 1, 2, ... pictures, as many as are worth it."""


def saves(profile: Profile, width: int, height: int, degree: int, batch: int) -> bool:
    """Whether the last of a batch takes fewer GPU-seconds a step than alone at its cheapest degree."""
    if batch > profile.max_batch(width, height):
        return False
    extra = profile.step(width, height, degree, batch) - profile.step(width, height, degree, batch - 1)
    return degree * extra <= (1 - LEAST_SAVING) * cheapest(profile, width, height)


@lru_cache(maxsize=4096)
def cheapest(profile: Profile, width: int, height: int) -> float:
    """GPU-seconds of a step alone at the cheapest degree."""
    return min(k * profile.step(width, height, k) for k in profile.degrees(width, height))


@lru_cache(maxsize=4096)
def lanes(profile: Profile, width: int, height: int, max_degree: int) -> Lanes:
    """The batches worth it on blocks of at most `max_degree`, of the degrees that are worth it alone.

    Not where all is done as fast on narrower blocks of the same GPUs, side by side in smaller batches.
    """
    found: Lanes = {}
    degrees = [degree for degree in profile.degrees(width, height) if degree <= max_degree]
    alone = {degree: (profile.step(width, height, degree),) for degree in degrees}
    for degree in degrees:
        largest = 1
        while saves(profile, width, height, degree, largest + 1):
            largest += 1
        steps = tuple(profile.step(width, height, degree, b) for b in range(1, largest + 1))
        narrower = {k: times for k, times in (alone | found).items() if k < degree}
        if any(_is_new(degree, batch, step, narrower) for batch, step in enumerate(steps[1:], start=2)):
            found[degree] = steps
    return found


def _is_new(degree: int, batch: int, step: float, narrower: Lanes) -> bool:
    """Whether no `narrower` degree does a batch's step as fast on the same GPUs, as several batches."""
    parts = ((math.ceil(batch * k / degree), times) for k, times in narrower.items())
    return all(part > len(times) or times[part - 1] > step + TOLERANCE for part, times in parts)
