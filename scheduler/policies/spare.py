"""What to do with GPUs that no deadline needs: best-effort work, and work that will be late.

Steps cannot be interrupted, so such work must not stand in the way of the next arrival, which may have
no time to lose. Hence its orders are short, they are not queued ahead, and a degree whose steps are
long is not used unless all are, or the request has waited for long.
"""

from scheduler.placement import mask_of
from scheduler.policies.board import Work
from scheduler.policies.lineup import Lineup, Piece
from scheduler.problem import Stage

BLOCKING_S = 0.15
"""How long an order may keep a GPU from an arrival, at most; less where arrivals have less to lose."""
PATIENCE_S = 120.0
"""Who has waited for this long takes no heed of arrivals that have less to lose than its steps take."""


def fill(lineup: Lineup) -> None:
    """Give short orders on GPUs that are idle: best effort and doubtful before late, oldest first."""
    board = lineup.board
    now = board.problem.now
    waiting = [work for work in board.works if work.ready <= now and _is_spare(lineup, work)]
    waiting.sort(key=lambda work: (work.late, work.request.arrived_at, work.request.id))
    idle = mask_of(gpu.slot for gpu in board.problem.gpus if gpu.free_at <= now)
    ahead, lineup.free = lineup.free & ~idle, lineup.free & idle
    for index, work in enumerate(waiting):
        if not lineup.free:
            break
        piece = _order(lineup, work, lineup.free.bit_count() // (len(waiting) - index))
        if piece is not None:
            lineup.give(piece)
    lineup.free |= ahead


def _is_spare(lineup: Lineup, work: Work) -> bool:
    if work.late:
        return not work.request.drop_late
    return work.request.id not in lineup.finish and work.request.id not in lineup.pieces


def _order(lineup: Lineup, work: Work, share: int) -> Piece | None:
    """A short order at the widest degree within the share; the narrowest that is fast, if that is wider."""
    if work.stage is not Stage.DENOISING:
        return lineup.order(work, 1, 0)
    problem, ladder = lineup.board.problem, work.ladder
    longest = min(BLOCKING_S, problem.slack_s)
    fast = [degree for degree in ladder.degrees if ladder.step[degree] <= longest]
    if not fast:
        if problem.slack_s < ladder.fastest and problem.now - work.request.arrived_at < PATIENCE_S:
            return None
        fast = [ladder.widest]
    for degree in reversed(fast):
        if degree <= max(share, fast[0]):
            piece = lineup.order(work, degree, work.steps, max(longest, ladder.step[degree]))
            if piece is not None:
                return piece
    return None
