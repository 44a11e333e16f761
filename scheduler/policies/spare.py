"""What to do with GPUs that no deadline needs: late and best-effort work, in short orders.

Steps cannot be interrupted, so work that is late anyway must not stand in the way of arrivals with
tight deadlines: it leaves half of the GPUs free, and its orders are short.
"""

from scheduler.policies.board import Work
from scheduler.policies.lineup import Lineup, Piece
from scheduler.problem import Stage

LANE_SECONDS = 0.3
"""Longest order of the lane, where a step is shorter."""


def fill(lineup: Lineup, spare: int | None = None) -> None:
    """Give orders to best-effort and late work, oldest first, so that `spare` GPUs stay free."""
    board = lineup.board
    total = len(board.layout.slots)
    room = max(1, total - (total // 2 if spare is None else spare))
    works = [w for w in board.works if _in_lane(w)]
    room -= sum(work.held.bit_count() for work in works if not board.startable(work))
    for work in sorted(works, key=lambda w: (w.late, w.request.arrived_at, w.request.id)):
        if room < 1 or not lineup.free:
            return
        if not board.startable(work):
            continue
        piece = _order(lineup, work, room)
        if piece is not None:
            lineup.give(piece)
            room -= piece.block.bit_count()


def _in_lane(work: Work) -> bool:
    return (work.late and not work.request.drop_late) or not work.has_deadline


def _order(lineup: Lineup, work: Work, room: int) -> Piece | None:
    """A short order at the widest degree that there is room for."""
    if work.stage is not Stage.DENOISING:
        return lineup.order(work, 1, 0)
    for degree in reversed(work.ladder.degrees):
        if degree <= room:
            piece = lineup.order(work, degree, work.steps, max(LANE_SECONDS, work.ladder.step[degree]))
            if piece is not None:
                return piece
    return None
