"""The cheapest way to do a request's steps in time: a mix of at most two degrees.

Least GPU-seconds for a number of steps within a time is a linear program with two constraints, so
that two degrees suffice: the wide one for as few steps as must be, the narrow one for the rest.
"""

import sys
from functools import lru_cache
from typing import NamedTuple

from scheduler.profile import Profile

# Times are sums of many floats: what misses by less than this is in time.
TOLERANCE = 1e-9


class Mix(NamedTuple):
    """`wide_steps` at degree `wide`, then `narrow_steps` at `narrow`; `wide` alone is the usual case."""

    wide: int
    wide_steps: int
    narrow: int
    narrow_steps: int
    seconds: float
    gpu_seconds: float


class Ladder:
    """The degrees worth using for one size, ascending, with the seconds of a step at each."""

    def __init__(self, steps: dict[int, float]) -> None:
        self.step = steps
        self.degrees: tuple[int, ...] = tuple(steps)
        self.widest: int = self.degrees[-1]
        self.fastest: float = steps[self.widest]
        self.least_cost: float = min(k * t for k, t in steps.items())
        """GPU-seconds of a step where it costs least."""
        # Cheapest first, so that the first degree that is fast enough alone is the answer.
        self._by_cost = sorted(((k * t, k, t) for k, t in steps.items()), key=lambda rung: rung[:2])

    def cheapest(self, steps: int, seconds: float, widest: int = sys.maxsize) -> Mix | None:
        """The mix of least GPU-seconds that does `steps` within `seconds`, on at most `widest` GPUs.

        None where nothing is fast enough.
        """
        seconds += TOLERANCE
        if steps * self.fastest > seconds:
            return None
        rungs = self._by_cost if widest >= self.widest else [r for r in self._by_cost if r[1] <= widest]
        best: Mix | None = None
        for index, (cost, degree, step) in enumerate(rungs):
            if best is not None and steps * cost >= best.gpu_seconds:
                break
            if steps * step <= seconds:
                return _less(best, Mix(degree, steps, degree, 0, steps * step, steps * cost))
            # Too slow alone, the cheapest of what is left: with as few faster steps as it takes.
            for fast_cost, fast_degree, fast_step in rungs[index + 1 :]:
                if steps * fast_step > seconds:
                    continue
                fast_steps = _ceil((steps * step - seconds) / (step - fast_step))
                slow_steps = steps - fast_steps
                total = fast_steps * fast_cost + slow_steps * cost
                if best is None or total < best.gpu_seconds:
                    took = fast_steps * fast_step + slow_steps * step
                    best = Mix(fast_degree, fast_steps, degree, slow_steps, took, total)
        return best

    def at_once(self, steps: int) -> Mix:
        """All steps at the fastest degree."""
        took = steps * self.fastest
        return Mix(self.widest, steps, self.widest, 0, took, self.widest * took)


def _less(best: Mix | None, mix: Mix) -> Mix:
    return mix if best is None or mix.gpu_seconds < best.gpu_seconds else best


def _ceil(x: float) -> int:
    return -int(-x // 1)


@lru_cache(maxsize=4096)
def ladder(profile: Profile, width: int, height: int, max_degree: int) -> Ladder:
    """The ladder of a size on a cluster whose largest block has `max_degree` slots."""
    degrees = [k for k in profile.degrees(width, height) if k <= max_degree]
    return Ladder({k: profile.step(width, height, k) for k in degrees})
