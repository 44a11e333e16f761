"""Line requests up on the GPUs, one after the other, each for all that is left of it.

The line-up is both a plan and a forecast: the first pieces that can begin now are the orders of this
round, and the end of every last piece says who will be on time. Whoever is placed first has the GPUs
first; who comes later takes what is left, and gaps before the others' reservations.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import or_
from types import MappingProxyType
from typing import NamedTuple

from scheduler.placement import narrowed
from scheduler.policies.board import Board, Work
from scheduler.policies.mix import TOLERANCE
from scheduler.policies.path import Path, cheapest_path
from scheduler.problem import Assignment, Stage
from scheduler.timetable import Booking

MOVE_SECONDS = 0.01
"""What a move to other GPUs is taken to cost, beyond what the profile says of a change of group."""

HOPELESS_S = 1e-6
"""Who would be late by this much even if all GPUs were free as soon as the first needs no closer look."""


@dataclass(slots=True)
class Piece:
    """An order to be given: `steps` of the work's next stage on `block`, in at most `longest` seconds.

    The `guests` share its steps.
    """

    work: Work
    block: int
    steps: int
    begin: float
    end: float
    longest: float = math.inf
    guests: tuple[Work, ...] = ()
    chosen: int = 0
    """The degree before it was widened; 0: it has not been."""


class Aim(NamedTuple):
    """By when a request's denoising is to end, and on how many GPUs at least once they are free."""

    due: float
    narrowest: int = 1


class Task(NamedTuple):
    """Some steps of a request at one degree, or of several as a batch."""

    works: tuple[Work, ...]
    degree: int
    steps: int


class Ranking(NamedTuple):
    """Who is placed first; by request id the fewest GPUs of some, and who shares the steps of others."""

    order: tuple[Work, ...] = ()
    narrowest: Mapping[str, int] = MappingProxyType({})
    guests: Mapping[str, tuple[Work, ...]] = MappingProxyType({})


NOBODY = Ranking()


class Lineup:
    """GPUs that fill up as requests are placed."""

    def __init__(self, board: Board, ranking: Ranking = NOBODY, log: list[Booking] | None = None) -> None:
        """A `log` gets all that is placed, each request from end to end."""
        self.board = board
        self.ranking = ranking
        self.free = board.free
        """Slots that can still be given an order now."""
        self.pieces: dict[str, Piece] = {}
        self.finish: dict[str, float] = {}
        """When each placed request will end, decoding included."""
        self.gpu_seconds = 0.0
        self._log = log
        # When each block is free for good, and when the first reservation on each slot begins.
        self._ends = board.ends.copy()
        self._reserved = [math.inf] * len(board.free_at)

    def copy(self, ranking: Ranking) -> "Lineup":
        """The same so far, to go on with in another ranking."""
        other = Lineup.__new__(Lineup)
        other.board, other.ranking, other.free = self.board, ranking, self.free
        other.pieces, other.finish = self.pieces.copy(), self.finish.copy()
        other.gpu_seconds, other._log = self.gpu_seconds, None
        other._ends, other._reserved = self._ends.copy(), self._reserved.copy()
        return other

    # Placing.

    def place(self, work: Work, aim: Aim) -> bool:
        """Give the work an order now or a reservation, so that it meets its aim; False: it cannot."""
        if work.stage is Stage.ENCODING:
            return self._encode(work, aim)
        if work.stage is Stage.DENOISING:
            return self._denoise(work, aim)
        return self._decode(work, aim)

    def _encode(self, work: Work, aim: Aim) -> bool:
        piece = self._single(work)
        if piece is None:
            begin, block = self._earliest(work.stage, 1, work.ready, work.held)
            end = begin + work.encode
        else:
            begin, block, end = piece.begin, piece.block, piece.end
        if not self._reserve_path(work, work.steps, end, block, aim):
            return False
        if piece is not None:
            self.give(piece)
        self._note(work, Stage.ENCODING, block, begin, end)
        return True

    def _decode(self, work: Work, aim: Aim) -> bool:
        piece = self._single(work)
        found = (piece.begin, piece.block) if piece else None
        begin, block = found or self._earliest(work.stage, 1, work.ready, work.held)
        if begin > aim.due + TOLERANCE:
            return False
        if piece:
            self._accept(piece)
        else:
            self._reserve(block, begin)
        self._decode_on(work, block, begin)
        return True

    def _denoise(self, work: Work, aim: Aim) -> bool:
        """Take the cheapest path to the deadline; what of it can begin now becomes an order."""
        path, blocks = self._path(work, work.steps, work.ready, work.held, aim)
        if path is None:
            return False
        if self._startable(work) and self.free:
            head, mix = path.head_steps, path.mix
            block = blocks[path.head if head else mix.wide]
            begin = path.begin - self._lag(work, block, work.held, self._ends[block], work.ready)
            if block & ~self.free == 0 and begin <= self.board.problem.horizon:
                piece = self._piece(work, block, begin, head or mix.wide_steps)
                if piece is not None:
                    self._accept(piece)
                    self._keep(work, path, blocks, begun=True)
                    return True
            if self._denoise_in_gap(work, mix.wide, aim):
                return True
        self._keep(work, path, blocks)
        return True

    def _denoise_in_gap(self, work: Work, widest: int, aim: Aim) -> bool:
        """Give an order in front of others' reservations, if what follows still meets the deadline."""
        for degree in reversed(work.ladder.degrees):
            piece = self.order(work, degree, work.steps) if degree <= widest else None
            if piece is None:
                continue
            left = work.steps - piece.steps
            if left:
                fits = self._reserve_path(work, left, piece.end, piece.block, aim)
            else:
                fits = piece.end <= aim.due + TOLERANCE
                if fits:
                    self.finish[work.request.id] = end = piece.end + work.decode
                    self._note(work, Stage.DECODING, piece.block & -piece.block, piece.end, end)
            if fits:
                self.give(piece)
                self._note(work, Stage.DENOISING, piece.block, piece.begin, piece.end, piece.steps)
                self.gpu_seconds += degree * (piece.end - piece.begin)
                return True
        return False

    def _path(
        self, work: Work, steps: int, ready: float, held: int, aim: Aim
    ) -> tuple[Path | None, dict[int, int]]:
        """The cheapest path from `ready` on, and the block that it has at each degree."""
        ladder = work.ladder
        blocks: dict[int, int] = {}
        soonest = max(ready, min([self._ends[single] for single in self.board.layout.blocks[1]]))
        if soonest + steps * ladder.fastest > aim.due + HOPELESS_S:
            return None, blocks
        openings: list[tuple[int, float]] = []
        for degree in ladder.degrees:
            begin, block = self._earliest(Stage.DENOISING, degree, ready, held, ladder.switch)
            blocks[degree] = block
            if ladder.switch:
                begin += self._lag(work, block, held, begin, ready)
            openings.append((degree, begin))
        path = cheapest_path(ladder, steps, aim.due, openings, aim.narrowest)
        if path is not None and self._ends[blocks[path.mix.wide]] > path.switch + TOLERANCE:
            # Its own block is where its state is, and later; it begins on a part of a wider one.
            wide = next(blocks[k] for k, at in openings if k > path.mix.wide and at <= path.switch)
            blocks[path.mix.wide] = narrowed(wide, path.mix.wide)
        return path, blocks

    def _reserve_path(self, work: Work, steps: int, ready: float, held: int, aim: Aim) -> bool:
        path, blocks = self._path(work, steps, ready, held, aim)
        if path is None:
            return False
        self._keep(work, path, blocks)
        return True

    def _keep(self, work: Work, path: Path, blocks: dict[int, int], begun: bool = False) -> None:
        """Keep the blocks of a path, decoding included; the first is in use where it has `begun`."""
        mix, lag = path.mix, work.ladder.switch
        block = blocks[mix.wide]
        if path.head_steps:
            self._hold(blocks[path.head], path.switch)
            begin = path.begin - lag
            self._note(work, Stage.DENOISING, blocks[path.head], begin, path.switch, path.head_steps)
            if not begun:
                self._reserve(blocks[path.head], path.begin - lag)
        if path.head_steps or not begun:
            self._reserve(block, path.switch - lag)
        leader = block & -block
        end = path.switch + mix.wide_steps * work.ladder.step[mix.wide]
        self._hold(block, end)
        self._note(work, Stage.DENOISING, block, path.switch - lag, end, mix.wide_steps)
        if mix.narrow_steps:
            narrow = narrowed(block, mix.narrow)
            self._hold(narrow, path.end)
            self._note(work, Stage.DENOISING, narrow, end, path.end, mix.narrow_steps)
        self._keep_decoder(work, leader, path.end)
        self.gpu_seconds += path.gpu_seconds

    def _keep_decoder(self, work: Work, leader: int, ready: float) -> None:
        """Keep a GPU for the decoding: the leader of the steps, or else the first that can."""
        begin = ready
        if not leader & self.board.able[Stage.DECODING]:
            begin, leader = self._earliest(Stage.DECODING, 1, ready, 0)
            if begin > work.hard_due + TOLERANCE:
                return
            self._reserve(leader, begin)
        self._decode_on(work, leader, begin)

    def _decode_on(self, work: Work, block: int, begin: float) -> None:
        end = begin + work.decode
        self._hold(block, end)
        self._note(work, Stage.DECODING, block, begin, end)
        self.finish[work.request.id] = end

    # Running what somebody else has chosen.

    def run_encoding(self, work: Work) -> tuple[float, int]:
        """Encode as early as can be, where that is still to do; when its steps can begin, and where it is."""
        if work.stage is not Stage.ENCODING:
            return work.ready, work.held
        piece = self._single(work)
        if piece is not None:
            self.give(piece)
            return piece.end, piece.block
        begin, block = self._earliest(work.stage, 1, work.ready, work.held)
        return begin + work.encode, block

    def run_steps(self, task: Task, ready: float, held: int) -> tuple[float, int]:
        """Run steps as early as can be, behind all that was placed before; when and where they end."""
        works, degree, steps = task
        first = works[0]
        step = first.step(degree, len(works))
        begin, block = self._earliest(Stage.DENOISING, degree, ready, held, first.ladder.switch)
        if begin == math.inf:
            return begin, block  # nobody can run them, or encode before
        lag = self._lag(first, block, held, begin, ready)
        if (
            block & ~self.free == 0
            and begin <= self.board.problem.horizon
            and all(work.stage is Stage.DENOISING and self._startable(work) for work in works)
        ):
            count = min(steps, max(1, int((self.board.problem.round_s - lag) / step + TOLERANCE)))
            piece = Piece(first, block, count, begin, begin + lag + count * step, guests=works[1:])
            self._accept(piece)
            if count < steps:
                self._reserve(block, piece.end)
        else:
            self._reserve(block, begin)
        end = begin + lag + steps * step
        self._hold(block, end)
        self.gpu_seconds += degree * (end - begin)
        return end, block

    def run_decoding(self, work: Work, ready: float, block: int) -> None:
        """Decode after the last step, if that ended in time; those of a batch one after the other."""
        if ready > work.hard_due + TOLERANCE:
            return  # or there is no block at all
        leader = block & -block
        begin = max(ready, self._ends[leader])
        if begin <= work.hard_due + TOLERANCE:
            self._keep_decoder(work, leader, begin)

    # Filling what is left.

    def order(self, work: Work, degree: int, steps: int, seconds: float = math.inf) -> Piece | None:
        """An order of at most `steps` steps, or `seconds` of them, on a free block before reservations."""
        if work.stage is not Stage.DENOISING:
            return self._single(work)
        block = self._find(degree, work)
        if block is None:
            return None
        begin, limit = self._window(block, work.ready)
        lag = self._lag(work, block, work.held, begin, work.ready)
        piece = self._piece(work, block, begin, steps, min(limit, begin + seconds + lag))
        if piece is not None:
            piece.longest = seconds
        return piece

    def give(self, piece: Piece) -> None:
        """Give an order that `order` made."""
        self._hold(piece.block, piece.end)
        self._accept(piece)

    def widen(self, extra: float = 1.0, besides: int = 0) -> None:
        """Spend idle GPUs, those `besides` aside, on orders of this round: the most time saved first.

        Of the GPU-seconds that an order then takes at most the share `extra` may be extra, and no more than
        `scale_up`, against the degree at which it was placed.
        """
        extra = min(extra, self.board.problem.scale_up)
        while True:
            best, best_saved = None, 0.0
            for key, piece in self.pieces.items():
                if piece.work.late or key in self.board.busy:  # what goes on comes later
                    continue
                wider = self._wider(piece, self.free & ~besides)
                if wider is None:
                    continue
                step = piece.work.ladder.step
                now, then = piece.block.bit_count(), wider.block.bit_count()
                wider.chosen = piece.chosen or now
                if wider.chosen * step[wider.chosen] < (1 - extra) * then * step[then] - TOLERANCE:
                    continue
                saved = (step[now] - step[then]) * piece.work.steps
                saved -= wider.begin + self._lag_of(wider) - piece.begin - self._lag_of(piece)
                if saved > best_saved:
                    best, best_saved = wider, saved
            if best is None:
                return
            self.give(best)

    def assignments(self) -> tuple[Assignment, ...]:
        """The orders, in the order in which they were placed."""
        members = self.board.layout.members
        return tuple(
            Assignment(
                (key, *(guest.request.id for guest in p.guests)),
                p.work.stage,
                members[p.block],
                p.steps,
                p.begin,
                p.end,
            )
            for key, p in self.pieces.items()
            if key == p.work.request.id
        )

    # Books.

    def reserved(self, slots: Iterable[int]) -> float:
        """When the first reservation on one of the slots begins; those that take no more orders have none."""
        known = self.board.layout.slots
        return min((self._reserved[slot] for slot in slots if slot in known), default=math.inf)

    def _startable(self, work: Work) -> bool:
        """Whether the work can be given an order now and has none yet."""
        return self.board.startable(work) and work.request.id not in self.pieces

    def _find(self, degree: int, work: Work) -> int | None:
        """The free block that suits best: without a reservation, then by `Layout.find`."""
        layout = self.board.layout
        best, best_rank = None, (-math.inf, -math.inf, -1, -1)
        for block in self.board.blocks(work.stage, degree):
            if block & self.free == block:
                limit = min([self._reserved[slot] for slot in layout.members[block]])
                sooner = -self.board.ends[block] if work.stage is Stage.ENCODING else 0.0
                rank = (sooner, limit, (block & work.held).bit_count(), -layout.room(block, self.free))
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
        lag = self._lag(work, block, work.held, begin, work.ready)
        room = min(self.board.problem.round_s, limit - begin)
        count = int((room - lag) / step + TOLERANCE)
        if count < 1:
            if begin + lag + step > limit + TOLERANCE:
                return None
            count = 1
        count = min(count, steps)
        return Piece(work, block, count, begin, begin + lag + count * step)

    def _lag_of(self, piece: Piece) -> float:
        work = piece.work
        return self._lag(work, piece.block, work.held, piece.begin, work.ready)

    def _lag(self, work: Work, block: int, held: int, begin: float, ready: float) -> float:
        """What it costs to begin on a block: nothing for who goes on where it was, or on one GPU."""
        if block == held and begin <= ready + TOLERANCE:
            return 0.0  # nobody has come between
        return work.ladder.switch if block & (block - 1) else 0.0

    def _single(self, work: Work) -> Piece | None:
        """An encoding or decoding on one free GPU now."""
        block = self._find(1, work) if self._startable(work) else None
        if block is None:
            return None
        begin, limit = self._window(block, work.ready)
        end = begin + (work.encode if work.stage is Stage.ENCODING else work.decode)
        return Piece(work, block, 0, begin, end) if end <= limit + TOLERANCE else None

    def _wider(self, piece: Piece, free: int) -> Piece | None:
        """The same order on the next wider block, where that is idle and faster."""
        if piece.work.stage is not Stage.DENOISING or piece.guests:
            return None
        block = self.board.layout.parent.get(piece.block)
        if block is None or (block & ~piece.block) & ~free:
            return None
        if block.bit_count() not in piece.work.ladder.step:
            return None
        begin, limit = self._window(block, piece.work.ready)
        lag = self._lag(piece.work, block, piece.work.held, begin, piece.work.ready)
        limit = min(limit, begin + piece.longest + lag)
        wider = self._piece(piece.work, block, begin, piece.work.steps, limit)
        if wider is not None:
            wider.longest = piece.longest
        return wider

    def _earliest(
        self, stage: Stage, degree: int, ready: float, held: int, switch: float = 0.0
    ) -> tuple[float, int]:
        """When a block of the degree is free for good for a stage, and which; infinity: there is none.

        Where another group than the one that holds the state costs `switch`, that counts in the choice.
        """
        layout, ends, free = self.board.layout, self._ends, self.free
        best, best_begin, best_rank = 0, math.inf, math.inf
        best_room: int | None = 0  # None: not asked yet
        for block in self.board.blocks(stage, degree):
            begin = ends[block]
            if begin < ready:
                begin = ready
            rank = begin if not held or block & held else begin + MOVE_SECONDS
            if switch and block != held:
                rank += switch
            if rank > best_rank + TOLERANCE:
                continue
            if rank < best_rank - TOLERANCE:
                best, best_begin, best_rank, best_room = block, begin, rank, None
                continue
            if best_room is None:
                best_room = layout.room(best, free) - (best & held).bit_count()
            room = layout.room(block, free) - (block & held).bit_count()
            if room < best_room:
                best, best_begin, best_rank, best_room = block, begin, rank, room
        return best_begin, best

    def _note(self, work: Work, stage: Stage, block: int, begin: float, end: float, steps: int = 0) -> None:
        if self._log is not None:
            slots = self.board.layout.members[block]
            self._log.append(Booking(work.request.id, stage, slots, steps, begin, end))

    def _hold(self, block: int, end: float) -> None:
        """Keep a block until `end`."""
        ends = self._ends
        for other in self.board.layout.overlapping[block]:
            if ends[other] < end:
                ends[other] = end

    def _reserve(self, block: int, begin: float) -> None:
        reserved = self._reserved
        for slot in self.board.layout.members[block]:
            reserved[slot] = min(reserved[slot], begin)

    def _accept(self, piece: Piece) -> None:
        for work in (piece.work, *piece.guests):
            self.pieces[work.request.id] = piece
        self.free &= ~piece.block


def line_up(board: Board, ranking: Ranking, log: list[Booking] | None = None) -> Lineup:
    """Place the work in its order, each to meet its deadline with the margin, or else without.

    Guests are placed with their host, whose steps they share.
    """
    lineup = Lineup(board, ranking, log)
    for _ in line_up_rest(lineup):
        pass
    return lineup


def line_up_rest(lineup: Lineup, begin: int = 0) -> Iterator[tuple[Work, ...]]:
    """Place the work from the place `begin` of the ranking on; who has been placed, or not, after each."""
    order, narrowest, guests = lineup.ranking
    placed = guests_of(lineup.ranking)
    for work in order[begin:]:
        key = work.request.id
        if others := guests.get(key):
            works = (work, *others)
            _run(lineup, together({w: w.steps for w in works}, work.shared_degree(len(works))))
            yield works
        elif key in placed:
            yield ()
        else:
            _place(lineup, work, narrowest.get(key, 1))
            yield (work,)


def guests_of(ranking: Ranking) -> set[str]:
    """Ids of those who share the steps of another."""
    return {guest.request.id for guests in ranking.guests.values() for guest in guests}


def follow(board: Board, ranking: Ranking, tasks: Iterable[Task]) -> Lineup:
    """Run the tasks in their order, each as early as it can; then place in their order who has none."""
    lineup = Lineup(board, ranking)
    for work in ranking.order:
        if work.stage is Stage.DECODING:
            _place(lineup, work)
    done = _run(lineup, tasks)
    for work in ranking.order:
        if work.steps and work.request.id not in done:
            _place(lineup, work)
    return lineup


def together(steps: Mapping[Work, int], degree: int) -> Iterator[Task]:
    """So many steps of each, shared by all who have some left."""
    done = 0
    left = sorted(steps, key=lambda work: steps[work])
    while left:
        count = steps[left[0]] - done
        if count:
            yield Task(tuple(left), degree, count)
            done += count
        del left[0]


def _run(lineup: Lineup, tasks: Iterable[Task]) -> Collection[str]:
    """Run the tasks in their order, with encodings and decodings; whose they are."""
    done: dict[str, int] = {}
    at: dict[str, tuple[float, int]] = {}
    for task in tasks:
        keys = [work.request.id for work in task.works]
        for key, work in zip(keys, task.works, strict=True):
            if key not in at:
                at[key] = lineup.run_encoding(work)
        # The latents of a batch are brought to where it runs.
        ready, held = max(at[key][0] for key in keys), reduce(or_, (at[key][1] for key in keys))
        end = lineup.run_steps(task, ready, held)
        for key, work in zip(keys, task.works, strict=True):
            at[key] = end
            done[key] = done.get(key, 0) + task.steps
            if done[key] == work.steps:
                lineup.run_decoding(work, *end)
    return done


def _place(lineup: Lineup, work: Work, narrowest: int = 1) -> None:
    aim, last = Aim(work.due, narrowest), Aim(work.hard_due)
    if not lineup.place(work, aim) and aim != last:
        lineup.place(work, last)


def on_time(lineup: Lineup) -> float:
    """Weight of the requests that the line-up brings in by their deadlines."""
    return sum(work.request.weight for work in lineup.board.works if work.request.id in lineup.finish)


def least_gpu_seconds(lineup: Lineup) -> float:
    """What the steps of those on time would take if each had all GPUs to itself now."""
    total = 0.0
    for work in lineup.ranking.order:
        if work.steps and work.request.id in lineup.finish:
            alone = work.ladder.cheapest(work.steps, work.hard_due - work.ready - work.encode)
            total += alone.gpu_seconds if alone else work.ladder.at_once(work.steps).gpu_seconds
    return total
