"""Shortest remaining time first: the mean latency's friend, blind to deadlines.

Every request runs at the fastest degree that a free block allows, the one with the least left to do
first, and gives way to shorter ones at the end of each order. Late or not makes no difference.
"""

from scheduler.policies.board import Board, Work
from scheduler.policies.lineup import Lineup
from scheduler.problem import Plan, Policy, Problem, Stage


def srtf() -> Policy:
    """The policy; its time budget is not needed."""
    return plan


def plan(problem: Problem, _budget_s: float) -> Plan:
    """Orders for this round."""
    lineup = Lineup(Board(problem))
    for work in sorted(lineup.board.works, key=_remaining):
        if lineup.board.startable(work) and not (work.late and work.request.drop_late):
            _run(lineup, work)
    late = tuple(work.request.id for work in lineup.board.works if work.late)
    return Plan(lineup.assignments(), late)


def _remaining(work: Work) -> tuple[float, float, str]:
    seconds = work.encode + work.steps * work.ladder.fastest + work.decode
    return seconds, work.request.arrived_at, work.request.id


def _run(lineup: Lineup, work: Work) -> None:
    """Give the work an order at the widest degree that there is a free block for."""
    degrees = work.ladder.degrees if work.stage is Stage.DENOISING else (1,)
    for degree in reversed(degrees):
        piece = lineup.order(work, degree, work.steps)
        if piece is not None:
            lineup.give(piece)
            return
