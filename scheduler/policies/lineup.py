"""Line requests up on the GPUs, one after the other, each for all that is left of it.

The line-up is both a plan and a forecast: the first pieces that can begin now are the orders of this
round, and the end of every last piece says who will be on time. Whoever is placed first has the GPUs
first; who comes later takes what is left, and gaps before the others' reservations.
"""

import math
from dataclasses import dataclass

from scheduler.policies.board import Board, Work
from scheduler.policies.mix import TOLERANCE, Mix
from scheduler.problem import Assignment, Stage


@dataclass(slots=True)
class Piece:
    """An order to be given: `steps` of the work's next stage on `block`."""

    work: Work
    block: int
    steps: int
    begin: float
    end: float


class Lineup:
    """GPUs that fill up as requests are placed."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self.free = board.free
        """Slots that can still be given an order now."""
        self.pieces: dict[str, Piece] = {}
        self.finish: dict[str, float] = {}
        """When each placed request will end, decoding included."""
        self.gpu_seconds = 0.0
        self._until = board.free_at.copy()
        self._reserved = [math.inf] * len(self._until)

    # Placing.

    def place(self, work: Work) -> bool:
        """Give the work an order now or a reservation, so that it meets its deadline; False: it cannot."""
        board = self.board
        if board.startable(work) and self.free:
            if work.stage is Stage.DENOISING:
                placed = self._denoise_now(work)
            else:
                placed = self._single_now(work)
            if placed:
                return True
        ready = work.ready
        if work.stage is Stage.ENCODING:
            ready = self._earliest(1, ready, work.held)[0] + work.encode
        return self._go_on(work, work.steps, ready, work.held)

    def _single_now(self, work: Work) -> bool:
        """Encode or decode now on one GPU."""
        piece = self._single(work)
        if piece is None:
            return False
        saved = self._hold(piece.block, piece.end)
        if work.stage is Stage.DECODING:
            self._accept(piece, piece.end)
            return True
        if self._go_on(work, work.steps, piece.end, piece.block):
            self._accept(piece)
            return True
        self._restore(saved)
        return False

    def _denoise_now(self, work: Work) -> bool:
        """Begin to denoise now: as wide as it should be, or narrower where that can be made good later."""
        budget = work.due - max(work.ready, self.board.problem.now)
        mix = work.ladder.cheapest(work.steps, budget)
        if mix is None:
            return False
        for degree in reversed(work.ladder.degrees):
            if degree > mix.wide:
                continue
            block = self._find(degree, work)
            if block is None:
                continue
            begin, limit = self._window(block, work.ready)
            if limit == math.inf:
                whole = work.ladder.cheapest(work.steps, work.due - begin, degree)
                if whole is not None and whole.wide == degree:
                    self._accept(self._piece(work, block, begin, whole.wide_steps))
                    self._commit(work, block, begin, whole)
                    return True
            piece = self._piece(work, block, begin, work.steps, limit)
            if piece is None:
                continue
            saved = self._hold(block, piece.end)
            if self._go_on(work, work.steps - piece.steps, piece.end, block):
                self._accept(piece)
                return True
            self._restore(saved)
        return False

    def _go_on(self, work: Work, steps: int, ready: float, held: int) -> bool:
        """Reserve GPUs from `ready` on for the rest: the narrowest that free up soon enough."""
        if steps == 0:
            begin, block = self._earliest(1, ready, held)
            if begin > work.due + TOLERANCE:
                return False
            self._reserve(block, begin)
            self._commit(work, block, begin, Mix(1, 0, 1, 0, 0.0, 0.0))
            return True
        for degree in work.ladder.degrees:
            begin, block = self._earliest(degree, ready, held)
            mix = work.ladder.cheapest(steps, work.due - begin, degree)
            if mix is not None:
                self._reserve(block, begin)
                self._commit(work, block, begin, mix)
                return True
        return False

    # Filling what is left.

    def squeeze(self, work: Work) -> bool:
        """Give the work an order now if its cheapest mix fits, though its deadline is in doubt."""
        board = self.board
        if not (board.startable(work) and self.free):
            return False
        if work.stage is not Stage.DENOISING:
            piece = self.order(work, 1, 0)
        else:
            mix = work.ladder.cheapest(work.steps, work.due - work.ready)
            if mix is None:
                return False
            piece = self.order(work, mix.wide, mix.wide_steps)
        if piece is None:
            return False
        self.give(piece)
        return True

    def order(self, work: Work, degree: int, steps: int, seconds: float = math.inf) -> Piece | None:
        """An order of at most `steps` steps and `seconds` on a free block, in front of reservations."""
        if work.stage is not Stage.DENOISING:
            return self._single(work)
        block = self._find(degree, work)
        if block is None:
            return None
        begin, limit = self._window(block, work.ready)
        return self._piece(work, block, begin, steps, min(limit, begin + seconds))

    def give(self, piece: Piece) -> None:
        """Give an order that `order` made."""
        self._hold(piece.block, piece.end)
        self._accept(piece)

    def widen(self) -> None:
        """Spend idle GPUs on orders of this round: the most time saved first."""
        while True:
            best, best_saved = None, 0.0
            for piece in self.pieces.values():
                wider = self._wider(piece)
                if wider is None:
                    continue
                step = piece.work.ladder.step
                saved = (step[piece.block.bit_count()] - step[wider.block.bit_count()]) * piece.work.steps
                if saved > best_saved:
                    best, best_saved = wider, saved
            if best is None:
                return
            self._hold(best.block, best.end)
            self._accept(best)

    def assignments(self) -> tuple[Assignment, ...]:
        """The orders, in the order in which they were placed."""
        members = self.board.layout.members
        return tuple(
            Assignment(key, p.work.stage, members[p.block], p.steps, p.begin, p.end)
            for key, p in self.pieces.items()
        )

    # Books.

    def _find(self, degree: int, work: Work) -> int | None:
        """The free block that suits best: without a reservation, then by `Layout.find`."""
        layout = self.board.layout
        best, best_rank = None, (-math.inf, -1, -1)
        for block in layout.blocks.get(degree, ()):
            if block & self.free == block:
                limit = min([self._reserved[slot] for slot in layout.members[block]])
                rank = (limit, (block & work.held).bit_count(), -layout.room(block, self.free))
                if rank > best_rank:
                    best, best_rank = block, rank
        return best

    def _window(self, block: int, ready: float) -> tuple[float, float]:
        """When an order on the block can begin, and when a reservation ends its time."""
        members = self.board.layout.members[block]
        free_at = self.board.free_at
        return max(ready, *[free_at[slot] for slot in members]), min([self._reserved[s] for s in members])

    def _piece(
        self, work: Work, block: int, begin: float, steps: int, limit: float = math.inf
    ) -> Piece | None:
        """As many of `steps` as a round and the limit allow; None where that is not one."""
        step = work.ladder.step[block.bit_count()]
        room = min(self.board.problem.round_s, limit - begin)
        count = int(room / step + TOLERANCE)
        if count < 1:
            if begin + step > limit + TOLERANCE:
                return None
            count = 1
        count = min(count, steps)
        return Piece(work, block, count, begin, begin + count * step)

    def _single(self, work: Work) -> Piece | None:
        """An encoding or decoding on one free GPU."""
        block = self._find(1, work)
        if block is None:
            return None
        begin, limit = self._window(block, work.ready)
        end = begin + (work.encode if work.stage is Stage.ENCODING else work.decode)
        return Piece(work, block, 0, begin, end) if end <= limit + TOLERANCE else None

    def _wider(self, piece: Piece) -> Piece | None:
        """The same order on the next wider block, where that is idle and faster."""
        if piece.work.stage is not Stage.DENOISING:
            return None
        block = self.board.layout.parent.get(piece.block)
        if block is None or (block & ~piece.block) & ~self.free:
            return None
        if block.bit_count() not in piece.work.ladder.step:
            return None
        begin, limit = self._window(block, piece.work.ready)
        return self._piece(piece.work, block, begin, piece.work.steps, limit)

    def _earliest(self, degree: int, ready: float, held: int) -> tuple[float, int]:
        """When a block of the degree is free for good, and which."""
        layout, until = self.board.layout, self._until
        best, best_rank = 0, (math.inf, 0)
        for block in layout.blocks[degree]:
            rank = (max(ready, *[until[s] for s in layout.members[block]]), -(block & held).bit_count())
            if rank < best_rank:
                best, best_rank = block, rank
        return best_rank[0], best

    def _hold(self, block: int, end: float) -> list[tuple[int, float]]:
        """Keep the block until `end`; what it takes to undo that."""
        until = self._until
        saved = [(slot, until[slot]) for slot in self.board.layout.members[block]]
        for slot, before in saved:
            until[slot] = max(before, end)
        return saved

    def _restore(self, saved: list[tuple[int, float]]) -> None:
        for slot, before in saved:
            self._until[slot] = before

    def _reserve(self, block: int, begin: float) -> None:
        reserved = self._reserved
        for slot in self.board.layout.members[block]:
            reserved[slot] = min(reserved[slot], begin)

    def _accept(self, piece: Piece, finish: float | None = None) -> None:
        self.pieces[piece.work.request.id] = piece
        self.free &= ~piece.block
        if finish is not None:
            self.finish[piece.work.request.id] = finish

    def _commit(self, work: Work, block: int, begin: float, mix: Mix) -> None:
        """Keep the block for a whole mix and the decoding, narrowing on the way."""
        members = self.board.layout.members[block]
        switch = begin + mix.wide_steps * work.ladder.step.get(mix.wide, 0.0)
        end = begin + mix.seconds
        until = self._until
        for index, slot in enumerate(members):
            until[slot] = max(until[slot], end if index < mix.narrow and mix.narrow_steps else switch)
        until[members[0]] = max(until[members[0]], end + work.decode)
        self.finish[work.request.id] = end + work.decode
        self.gpu_seconds += mix.gpu_seconds
