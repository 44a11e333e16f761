"""The cheapest way to do a request's steps in time: a mix of at most two degrees.

Least GPU-seconds for a number of steps within a time is a linear program with two constraints, so
that two degrees suffice: the wide one for as few steps as must be, the narrow one for the rest.
"""

import math
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
    """The degrees worth using for one size, ascending, with the seconds of a step at each.

    A wider degree is faster than all narrower ones (see `Profile.degrees`). To begin in another group of
    several costs `switch` seconds.
    """

    def __init__(self, step: dict[int, float], switch: float = 0.0) -> None:
        self.step = step
        self.switch = switch
        self.degrees: tuple[int, ...] = tuple(step)
        self.widest: int = self.degrees[-1]
        self.fastest: float = step[self.widest]
        self.least_cost: float = min(k * t for k, t in step.items())
        """GPU-seconds of a step where it costs least."""
        # Cheapest first, so that the first degree that is fast enough alone is the answer.
        rungs = sorted((k * t, k, t) for k, t in step.items())
        self._rungs = {
            (low, high): [rung for rung in rungs if low <= rung[1] <= high]
            for low in (1, *self.degrees)
            for high in self.degrees
        }

    def cheapest(self, steps: int, seconds: float, widest: int = 0, narrowest: int = 1) -> Mix | None:
        """The mix of least GPU-seconds that does `steps` within `seconds`; None where nothing can.

        `widest` and `narrowest` bound the degrees; they are degrees of this ladder, or left out.
        """
        widest = widest or self.widest
        seconds += TOLERANCE
        if steps * self.step[widest] > seconds:
            return None
        best: Mix | None = None
        rungs = self._rungs[narrowest, widest]
        for index, (cost, degree, step) in enumerate(rungs):
            if best is not None and steps * cost >= best.gpu_seconds:
                break
            if steps * step <= seconds:
                return _cheaper(best, Mix(degree, steps, degree, 0, steps * step, steps * cost))
            # Too slow alone, the cheapest of what is left: with as few faster steps as it takes.
            lag = self.switch if degree > 1 else 0.0
            for fast_cost, fast, fast_step in rungs[index + 1 :]:
                if steps * fast_step > seconds - lag:
                    continue
                fast_steps = -int((seconds - lag - steps * step) / (step - fast_step) // 1)
                slow_steps = steps - fast_steps
                took = fast_steps * fast_step + slow_steps * step + lag
                total = fast_steps * fast_cost + slow_steps * cost + degree * lag
                best = _cheaper(best, Mix(fast, fast_steps, degree, slow_steps, took, total))
        return best

    def least_gpu_seconds(self, steps: float, seconds: float) -> float:
        """What `steps` within `seconds` take at least, in whatever parts, switches aside.

        The value of the linear program that `cheapest` rounds; where nothing is fast enough, of the fastest.
        """
        seconds = max(seconds, steps * self.fastest)
        best = math.inf
        for degree, step in self.step.items():
            if steps * step <= seconds:
                best = min(best, steps * degree * step)
                continue
            for fast, fast_step in self.step.items():
                if steps * fast_step <= seconds:
                    quick = (steps * step - seconds) / (step - fast_step)
                    best = min(best, quick * fast * fast_step + (steps - quick) * degree * step)
        return best

    def at_once(self, steps: int) -> Mix:
        """All steps at the fastest degree."""
        took = steps * self.fastest
        return Mix(self.widest, steps, self.widest, 0, took, self.widest * took)


def _cheaper(best: Mix | None, mix: Mix) -> Mix:
    return mix if best is None or mix.gpu_seconds < best.gpu_seconds else best


@lru_cache(maxsize=4096)
def ladder(profile: Profile, width: int, height: int, max_degree: int) -> Ladder:
    """The ladder of a size on a cluster whose largest block has `max_degree` slots."""
    degrees = [k for k in profile.degrees(width, height) if k <= max_degree]
    return Ladder({k: profile.step(width, height, k) for k in degrees}, profile.switch)
