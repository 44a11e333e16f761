"""What shared steps are worth to the bound: how little of its GPUs a step takes that others share."""

from functools import lru_cache

from scheduler.policies.mix import TOLERANCE, Ladder
from scheduler.profile import Profile


@lru_cache(maxsize=4096)
def least_shares(profile: Profile, width: int, height: int, ladder: Ladder, most: int) -> dict[int, float]:
    """By degree, what falls to one of a batch of at most `most`, as a share of the GPU-time of its own step.

    Degrees at which no batch is worth anything are left out: none is whose members could all do a step of
    their own, as a fluid, on the same GPUs in the same time. Degrees not worth it alone are not asked.
    """
    found: dict[int, float] = {}
    for degree, alone in ladder.step.items():
        for batch in range(2, min(most, profile.max_batch(width, height)) + 1):
            seconds = profile.step(width, height, degree, batch)
            share = seconds / (batch * alone)
            if share < found.get(degree, 1.0) and not _fits_apart(ladder, degree, batch, seconds):
                found[degree] = share
    return found


def _fits_apart(ladder: Ladder, degree: int, batch: int, seconds: float) -> bool:
    """Whether so many requests can do a step each in this time on one block without sharing any, as a fluid.

    Whole steps at one degree, so that it holds for the rows about whole steps as well.
    """
    return any(
        step <= seconds + TOLERANCE and batch * k * step <= degree * seconds + TOLERANCE
        for k, step in ladder.step.items()
        if k <= degree
    )
