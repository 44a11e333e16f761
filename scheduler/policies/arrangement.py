"""Where the degrees of a round go: blocks for all of them at once, keeping requests where they are."""

from collections.abc import Iterable, Sequence

from scheduler.policies.board import Board, Work


def arrange(board: Board, wanted: Iterable[tuple[Work, int]], slots: int) -> dict[str, int]:
    """A block of `slots` for each work's degree, by request id; all are disjoint.

    Widest first: blocks nest, so whatever fits by number then finds a place where `slots` is whole.
    Where it has gaps, a work may get a narrower block than it wanted, or none and is left out.
    """
    order = sorted(wanted, key=lambda pair: (-pair[1], -min(pair[1], pair[0].held.bit_count())))
    places: dict[str, int] = {}
    for index, (work, degree) in enumerate(order):
        others = 0
        for other, _ in order[index + 1 :]:
            others |= other.held
        for narrower in reversed(work.ladder.degrees):
            block = _find(board, narrower, slots, work.held, others) if narrower <= degree else None
            if block is not None:
                places[work.request.id] = block
                slots &= ~block
                break
    return places


def _find(board: Board, degree: int, slots: int, held: int, others: int) -> int | None:
    """The work's own block if it can be, else one that nobody wants to keep and that is free soonest."""
    layout, horizon = board.layout, board.problem.horizon

    def rank(block: int) -> tuple[int, int, float, int]:
        free_at = max(horizon, board.ends[block])
        own, kept = (block & held).bit_count(), (block & others & ~held).bit_count()
        return own, -kept, -free_at, -layout.room(block, slots)

    blocks: Sequence[int] = [b for b in layout.blocks.get(degree, ()) if b & slots == b]
    return max(blocks, key=rank, default=None)
