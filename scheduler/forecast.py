"""Who would be on time: a line-up as policies make it, without giving any orders."""

from scheduler.policies.edf import by_deadline
from scheduler.policies.interrupt import yielding
from scheduler.policies.lineup import Lineup, Ranking, line_up
from scheduler.policies.search import hurry, improve, promote
from scheduler.problem import Problem

EFFORT = 100
"""Placements to spend on having more on time than earliest deadline first has."""


def forecast(problem: Problem) -> Lineup:
    """The line-up of all whose deadline can be met; late and best-effort work gives way."""
    board = yielding(problem)
    return improve(line_up(board, Ranking(by_deadline(board.works))), (hurry, promote), EFFORT)
