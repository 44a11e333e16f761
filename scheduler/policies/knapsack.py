"""The group knapsack of the paper's Algorithm 1: one option for each request, at most N GPUs in all."""

from collections.abc import Sequence
from typing import NamedTuple


class Item(NamedTuple):
    """An option: GPUs that it takes, and its worth; worths add up and compare part by part."""

    width: int
    worth: tuple[float, float]


def pack(groups: Sequence[Sequence[Item]], capacity: int) -> list[int]:
    """The index of the item to take from each group, for the greatest worth within the capacity.

    Among equals the item listed first. Every group needs one of width 0, so that there always is an
    answer; ValueError where one has none. Takes O(items * capacity).
    """
    best: list[tuple[float, float]] = [(0.0, 0.0)] * (capacity + 1)  # by capacity, of the groups so far
    taken: list[list[int]] = []
    for group in groups:
        if not any(item.width == 0 for item in group):
            raise ValueError("every group needs an item of width 0")
        rows = [_best_item(group, best, room) for room in range(capacity + 1)]
        best = [worth for worth, _ in rows]
        taken.append([index for _, index in rows])
    room = capacity
    choice = []
    for group, row in zip(reversed(groups), reversed(taken), strict=True):
        choice.append(row[room])
        room -= group[row[room]].width
    return choice[::-1]


def _best_item(
    group: Sequence[Item], best: Sequence[tuple[float, float]], room: int
) -> tuple[tuple[float, float], int]:
    found: tuple[tuple[float, float], int] | None = None
    for index, (width, (first, second)) in enumerate(group):
        if width <= room:
            before = best[room - width]
            worth = (before[0] + first, before[1] + second)
            if found is None or worth > found[0]:
                found = worth, index
    assert found is not None  # there is an item of width 0
    return found
