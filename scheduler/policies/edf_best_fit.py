"""Earliest deadline first, each at the narrowest degree that is predicted to meet its deadline.

After the policy of that name in GF-DiT ("Scheduling Parallelism for Diffusion Transformer Serving",
arXiv 2606.13501). The degree is chosen anew at the end of each order, among those that a free block
allows; where none of them meets the deadline, the fastest. So a doomed request keeps its place at the
head of the queue. Nothing is kept free for anybody; idle GPUs then speed up what runs.
"""

from scheduler.policies.board import Board, Work
from scheduler.policies.lineup import Lineup, Piece
from scheduler.policies.mix import TOLERANCE
from scheduler.problem import Plan, Policy, Problem, Stage


def edf_best_fit() -> Policy:
    """The policy; its time budget is not needed."""
    return plan


def plan(problem: Problem, _budget_s: float) -> Plan:
    """Orders for this round."""
    lineup = Lineup(Board(problem))
    for work in sorted(lineup.board.works, key=lambda w: (w.due, w.request.arrived_at, w.request.id)):
        if lineup.board.startable(work) and not (work.late and work.request.drop_late):
            piece = _best_fit(lineup, work)
            if piece is not None:
                lineup.give(piece)
    lineup.widen()
    late = tuple(work.request.id for work in lineup.board.works if work.late)
    return Plan(lineup.assignments(), late)


def _best_fit(lineup: Lineup, work: Work) -> Piece | None:
    """An order at the narrowest degree that meets the deadline, else at the fastest that fits."""
    if work.stage is not Stage.DENOISING:
        return lineup.order(work, 1, 0)
    fastest = None
    for degree in work.ladder.degrees:
        piece = lineup.order(work, degree, work.steps)
        if piece is None:
            break
        fastest = piece
        if piece.begin + work.steps * work.ladder.step[degree] <= work.due + TOLERANCE:
            break
    return fastest
