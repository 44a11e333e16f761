"""What the last arrivals were like: a guess at those to come."""

import math
from collections import deque

from scheduler.profile import Profile
from scheduler.tracking import Submission

WINDOW = 100
"""Arrivals that are remembered."""


class Demand:
    """The sizes and deadlines of the last arrivals."""

    def __init__(self) -> None:
        self._seen: deque[tuple[int, int, int, float]] = deque(maxlen=WINDOW)
        self._slack: float | None = None
        self._profile: Profile | None = None

    def note(self, submission: Submission, steps: int) -> None:
        """A request has arrived, with so many steps to compute."""
        if submission.deadline_s is not None:
            self._seen.append((submission.width, submission.height, steps, submission.deadline_s))
            self._slack = None

    def slack(self, profile: Profile) -> float:
        """Seconds that each of them could have been kept waiting, but for those late from the start."""
        if self._slack is None or profile is not self._profile:
            slacks = (
                deadline - profile.least_seconds(width, height, steps)
                for width, height, steps, deadline in self._seen
            )
            self._slack = min((slack for slack in slacks if slack >= 0), default=math.inf)
            self._profile = profile
        return self._slack
