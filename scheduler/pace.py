"""How much slower, or faster, than its profile each node is now.

A profile is measured on a quiet machine, and nodes may have unlike GPUs. What a node has measured when it
joins, against the first node, is its factor to begin with; its steps then move one a degree (and one for
decoding). What is planned with on a node is the profile times its factors. On nodes that keep to the profile
they stay where they are, and the profile with them.
"""

import math
from collections.abc import Iterable, Mapping

from scheduler.profile import Profile, StepTime

SMOOTHING = 0.1
"""Weight of a new observation against the average of the logarithms before it."""
WORTH_IT = 0.05
"""A factor is applied once it is off by this much: a new profile empties the policies' caches."""
OUTLIER = 4.0
"""No single step moves a factor as if it took more times its due than this."""
DECODING = 0
"""Stands where a degree does."""


class Pace:
    """A profile and what has been observed of it on one node."""

    def __init__(self, base: Profile) -> None:
        self.base = base
        self.profile = base
        """To plan with: the base at the present pace."""
        self._start = 0.0
        self._logs: dict[int, float] = {}
        self._applied: dict[int, float] = {}

    def begin(self, log: float) -> bool:
        """Begin with a factor, given by its logarithm, for all; whether the profile has changed with it."""
        if self._logs or abs(log - self._start) < WORTH_IT:
            return False
        self._start = log
        self._apply()
        return True

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
        before = self._logs.get(key, self._start)
        self._logs[key] = before + SMOOTHING * (log - before)
        if abs(self._logs[key] - self._applied.get(key, self._start)) < WORTH_IT:
            return False
        self._apply()
        return True

    def _apply(self) -> None:
        self._applied = dict(self._logs)
        if not self._start and not any(self._applied.values()):
            self.profile = self.base
            return
        factors = {key: math.exp(log) for key, log in self._applied.items()}
        self.profile = self.base.scaled(factors, factors.pop(DECODING, None), math.exp(self._start))


class Paces:
    """A profile and the pace of every node against it. A node of which nothing is known keeps to it."""

    def __init__(self, base: Profile) -> None:
        self.base = base
        self._of: dict[str, Pace] = {}
        self._alone: dict[tuple[int, int, int], float] = {}
        """Steps at degree 1, as the first node measured them."""

    def joins(self, node: str, measured: Iterable[StepTime]) -> bool:
        """What a node has measured itself, against the first that did; whether its profile has changed."""
        steps = (e for e in measured if e.kind == "step" and e.degree == 1)
        alone = {(e.width, e.height, e.batch): e.seconds for e in steps}
        logs = [math.log(alone[key] / self._alone[key]) for key in alone.keys() & self._alone.keys()]
        self._alone = {**alone, **self._alone}
        return bool(logs) and self.of(node).begin(sum(logs) / len(logs))

    def of(self, node: str) -> Pace:
        """The pace of a node."""
        return self._of.setdefault(node, Pace(self.base))

    def rebase(self, base: Profile) -> None:
        """Take a profile with more entries; what has been observed still holds."""
        self.base = base
        for pace in self._of.values():
            pace.rebase(base)

    @property
    def profiles(self) -> Mapping[str, Profile]:
        """To plan with on the nodes that do not keep to the base."""
        return {node: pace.profile for node, pace in self._of.items() if pace.profile is not self.base}
