"""What shared steps are worth to the bound: how little of its GPUs a step takes that others share."""

from functools import lru_cache

import numpy as np
from scipy.optimize import linprog

from scheduler.policies.mix import TOLERANCE, Ladder
from scheduler.profile import Profile


@lru_cache(maxsize=4096)
def least_shares(profile: Profile, width: int, height: int, ladder: Ladder, most: int) -> dict[int, float]:
    """By degree, what falls to one of a batch of at most `most`, as a share of the GPU-time of its own step.

    Degrees at which no batch is worth anything are left out: nor is one whose members could all do a step of
    their own, as a fluid, on the same GPUs in the same time.
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
    """Whether so many requests can do a step each in this time on one block, without sharing any.

    Asked of the same rows that the bound's program has (`program.py`), for requests that are all alike.
    """
    degrees = [k for k in ladder.degrees if k <= degree]
    rows, sides = [np.ones(len(degrees))], [seconds]  # one thing at a time
    size = 1
    while size <= degree:
        # All use no more than there is; narrow ones take a block of each size from the wide ones.
        rows.append(np.array([batch * k / size if k >= size else 1.0 for k in degrees]))
        sides.append(seconds * degree / size)
        size *= 2
    steps = [1 / ladder.step[k] for k in degrees]
    answer = linprog(np.negative(steps), A_ub=rows, b_ub=sides)
    return bool(answer.status == 0 and -answer.fun >= 1 - TOLERANCE)
