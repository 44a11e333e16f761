"""How much slower, or faster, than its profile the machine is now.

A profile is measured on a quiet machine. Observed steps move a factor a degree (and one for decoding);
what is planned with is the profile times the factors. On a machine that keeps to its profile they stay
where they are, and the profile with them.
"""

import math

from scheduler.profile import Profile

SMOOTHING = 0.1
"""Weight of a new observation against the average of the logarithms before it."""
WORTH_IT = 0.05
"""A factor is applied once it is off by this much: a new profile empties the policies' caches."""
OUTLIER = 4.0
"""No single step moves a factor as if it took more times its due than this."""
DECODING = 0
"""Stands where a degree does."""


class Pace:
    """A profile and what has been observed of it."""

    def __init__(self, base: Profile) -> None:
        self.base = base
        self.profile = base
        """To plan with: the base at the present pace."""
        self._logs: dict[int, float] = {}
        self._applied: dict[int, float] = {}

    def rebase(self, base: Profile) -> None:
        """Take a profile with more entries; what has been observed still holds."""
        self.base = base
        self._apply()

    def step(self, width: int, height: int, degree: int, batch: int, seconds: float) -> bool:
        """A step of `batch` requests has taken `seconds`; whether the profile has changed with it."""
        return self._observe(degree, seconds / self.base.step(width, height, degree, batch))

    def decode(self, width: int, height: int, seconds: float) -> bool:
        """The same for a decoding."""
        expected = self.base.decode(width, height)
        return expected > 0 and self._observe(DECODING, seconds / expected)

    def _observe(self, key: int, ratio: float) -> bool:
        if ratio <= 0:
            return False
        log = max(-math.log(OUTLIER), min(math.log(OUTLIER), math.log(ratio)))
        before = self._logs.get(key, 0.0)
        self._logs[key] = before + SMOOTHING * (log - before)
        if abs(self._logs[key] - self._applied.get(key, 0.0)) < WORTH_IT:
            return False
        self._apply()
        return True

    def _apply(self) -> None:
        self._applied = dict(self._logs)
        factors = {key: math.exp(log) for key, log in self._applied.items()}
        self.profile = self.base.scaled(factors, factors.get(DECODING, 1.0))
