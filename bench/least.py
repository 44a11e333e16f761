"""How few GPU-seconds the steps of a request can take, in whole steps and any mix of degrees."""

import math
from functools import lru_cache

import numpy as np

from scheduler.policies.mix import TOLERANCE, Ladder

MOST_COUNTS = 1_000_000
"""More are not looked at: parts of steps are a little less than whole ones."""


@lru_cache(maxsize=4096)
def least_gpu_seconds(ladder: Ladder, steps: int, seconds: float) -> float:
    """The least GPU-seconds of so many steps within so many seconds; infinity: nothing is fast enough.

    Of any number of degrees, unlike `Ladder.cheapest`, which plans with two: where whole steps leave a little
    time over, one of them at a third degree can be cheaper.
    """
    narrow, *rest = ladder.degrees
    middle, wider = (rest[0], rest[1:]) if rest else (narrow, [])
    if (steps + 1) ** len(wider) > MOST_COUNTS:
        if steps * ladder.fastest > seconds + TOLERANCE:
            return math.inf
        return ladder.least_gpu_seconds(steps, seconds + TOLERANCE)
    # All counts of all degrees but the narrowest two, side by side.
    counts = np.meshgrid(*[np.arange(steps + 1)] * len(wider), indexing="ij")
    left = steps - sum(counts, start=np.zeros(()))
    time = seconds + TOLERANCE - sum((n * ladder.step[k] for n, k in zip(counts, wider, strict=True)), 0.0)
    cost = sum((n * k * ladder.step[k] for n, k in zip(counts, wider, strict=True)), 0.0)
    best = math.inf
    slow, fast = ladder.step[narrow], ladder.step[middle]
    possible = (left >= 0) & (left * fast <= time)
    if not possible.any():
        return best
    # Of the narrowest two, as few or as many of the faster as can be: the cost is linear in them.
    least = np.zeros(()) if slow == fast else np.maximum(0.0, np.ceil((left * slow - time) / (slow - fast)))
    for quick in (least, left):
        total = cost + quick * middle * fast + (left - quick) * narrow * slow
        best = min(best, float(np.where(possible, total, math.inf).min()))
    return best
