"""Virtual time: actions in a heap by time, then by insertion, so that a run never depends on chance."""

import heapq
import itertools
import math
from collections.abc import Callable

Action = Callable[[], None]


class Clock:
    """The time in seconds, and what is to happen when."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Action]] = []
        self._sequence = itertools.count()

    def at(self, when: float, action: Action) -> None:
        """Have the action done at `when`, which is not in the past."""
        heapq.heappush(self._heap, (when, next(self._sequence), action))

    @property
    def next_at(self) -> float:
        """When the next action is due; infinity: there is none."""
        return self._heap[0][0] if self._heap else math.inf

    def step(self) -> None:
        """Go to the next action and do it."""
        self.now, _, action = heapq.heappop(self._heap)
        action()
