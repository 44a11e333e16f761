"""What the last arrivals were like: a guess at those to come."""

import math
from collections import deque

from scheduler.profile import Profile
from scheduler.tracking import Submission

WINDOW = 100
"""Arrivals that are remembered."""
CHANCE = 0.01
"""That somebody comes meanwhile who has less to lose: as much as work without a deadline may risk."""


class Demand:
    """The sizes and deadlines of the last arrivals, and when they came."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int, int, int, float]] = deque(maxlen=WINDOW)
        self._slacks: list[float] | None = None
        self._profile: Profile | None = None

    def note(self, now: float, submission: Submission, steps: int) -> None:
        """A request has arrived, with so many steps to compute."""
        if submission.deadline_s is not None:
            self._seen.append((now, submission.width, submission.height, steps, submission.deadline_s))
            self._slacks = None

    def slack(self, now: float, profile: Profile) -> float:
        """The most seconds that GPUs can be kept from arrivals at little risk.

        Those late from the start have nothing to lose; the others come as often as they did.
        """
        if self._slacks is None or profile is not self._profile:
            slacks = (
                deadline - profile.least_seconds(width, height, steps)
                for _, width, height, steps, deadline in self._seen
            )
            self._slacks = sorted(slack for slack in slacks if slack >= 0)
            self._profile = profile
        if not self._slacks:
            return math.inf
        span = now - self._seen[0][0]
        # Up to the next slack so many have less to lose; the longest that is safe enough with them.
        longest = self._slacks[0]
        for rarer, slack in enumerate(self._slacks[1:], 1):
            longest = max(longest, min(slack, CHANCE * span / rarer))
        return max(longest, CHANCE * span / len(self._slacks))
