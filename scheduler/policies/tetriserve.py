"""The paper's policy: rounds, in which a knapsack picks who runs at which degree.

After "TetriServe: Efficiently Serving Mixed DiT Workloads" (ASPLOS'26). In every round:

1. Each request's cheapest mix of at most two degrees that meets its deadline gives its options.
2. A group knapsack over GPUs picks an option, or none, for each. It counts the requests that survive
   the round: those that could still be on time if they had the fastest degree from then on.
3. Requests that are certain to be late get one GPU each, of those that nobody needs.
4. Idle GPUs go to the requests whose steps they speed up most.
5. Requests stay on their GPUs from round to round.
6. Small requests that would wait share the steps of others of their size, where no deadline is hurt by it.

What the paper leaves open is decided as follows.
- Ties of the knapsack: a request with slack survives whether it runs or not. Of packings with the same
  survivors we take the one with the fewest GPUs. The others then go to those who wait, up to the
  degree that they would have, least slack first.
- Survival of an option that ends the request within the round counts from that very end.
- Scale-up does not ask who is late: an idle GPU costs nobody anything.
- A degree whose step is longer than a round is not used, as in the paper; where all are, the fastest
  runs one step at a time, across the end of the round. The late lane's one GPU becomes the narrowest
  degree in use, for the same reason.
- Encoding and decoding take one GPU. A request to encode is packed with the steps that follow, on the
  block that they will have. Between rounds both may begin on idle GPUs if they end by the next. GPUs that
  do not denoise take them at once, and the packing is of the others.
- A round is planned half a lead before it begins, so that no GPU waits for orders.
- What small is, and when a deadline is hurt, the profile says; see `batching.py`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from scheduler.policies.arrangement import arrange
from scheduler.policies.batching import share
from scheduler.policies.board import Board, Work
from scheduler.policies.knapsack import Item, pack
from scheduler.policies.lineup import Lineup, Piece
from scheduler.policies.mix import TOLERANCE, Ladder
from scheduler.problem import Decision, Plan, Policy, Problem, Stage


@dataclass(frozen=True, slots=True)
class Parts:
    """What of the policy is on; the knapsack and the late lane always are.

    Not `aligned`: planned anew at every event, for all GPUs; what is not free yet is kept for whom it
    was planned for, and others use it only as long as they are not in the way.
    """

    placement: bool = True
    scale_up: bool = True
    batching: bool = True
    aligned: bool = True


VARIANTS: dict[str, Parts] = {
    "": Parts(),
    "scale-up": Parts(batching=False),
    "placement": Parts(scale_up=False, batching=False),
    "schedule": Parts(placement=False, scale_up=False, batching=False),
    "event": Parts(aligned=False),
}
"""The whole of it; its first three parts, two, and one, as in the paper's ablation; event-driven."""

LATEST_START = 0.02
"""How late a round may begin, in rounds, where there is no lead to plan in."""


def tetriserve(variant: str = "") -> Policy:
    """The policy, or one of its `VARIANTS`; ValueError: there is no such variant."""
    if variant not in VARIANTS:
        raise ValueError(
            f"tetriserve has no variant {variant!r}; there are {', '.join(filter(None, VARIANTS))}"
        )
    parts = VARIANTS[variant]

    def plan(problem: Problem, _budget_s: float) -> Plan:
        if not parts.placement:
            # Nobody is anywhere, so that nobody is kept there.
            problem = replace(problem, requests=tuple(replace(r, slots=()) for r in problem.requests))
        return Round(Board(problem), parts).plan()

    return plan


@dataclass(frozen=True, slots=True)
class Window:
    """When a round ends, when it is planned (`opens` to `closes`), and what may overrun it."""

    end: float
    opens: float
    closes: float
    grace: float


def aligned_window(problem: Problem) -> Window:
    """The round that is next to plan, or being planned, of those that begin at multiples of `round_s`."""
    length = problem.round_s
    grace = min(problem.horizon - problem.now, length) / 2
    late = max(grace, LATEST_START * length)
    begin = math.floor((problem.now + grace) / length + 1e-6) * length
    if problem.now > begin + late:
        begin += length
    return Window(begin + length, begin - grace, begin + late, grace)


@dataclass(frozen=True, slots=True)
class Option:
    """What a request may do in a round: `steps` steps on `degree` GPUs; on none, it waits.

    `slack`: how many seconds it could then wait, were it to go on at the fastest degree.
    """

    degree: int
    steps: int
    slack: float

    def item(self, weight: float) -> Item:
        """The option as the knapsack sees it: survival first, then few GPUs."""
        return Item(self.degree, (weight if self.slack >= -TOLERANCE else 0.0, -self.degree))


class Round(Lineup):
    """One round: its orders, and the blocks that are kept for what can't begin yet."""

    def __init__(self, board: Board, parts: Parts) -> None:
        super().__init__(board)
        self._parts = parts
        problem = board.problem
        if parts.aligned:
            self.window = aligned_window(problem)
        else:
            self.window = Window(problem.now + problem.round_s, -math.inf, math.inf, math.inf)

    def plan(self) -> Plan:
        """Orders for the round if now is the time to plan it, else what may begin between rounds."""
        now, window = self.board.problem.now, self.window
        decision = Decision()
        self._begin_apart()
        if now >= window.opens - TOLERANCE:
            decision = Decision(objective=self._pack())
            self._fill()
            self._lane()
            if self._parts.scale_up:
                self._speed_up()
        else:
            self._begin_stages()
        late = tuple(work.request.id for work in self.board.works if work.late)
        assignments = self.assignments()
        if self._parts.batching:
            assignments = share(self.board.problem, assignments)
        return Plan(assignments, late, self._again_at(), decision)

    # The knapsack.

    def _pack(self) -> float:
        """Give the orders of the best packing; the weight that survives the round with it."""
        board = self.board
        denoisers = board.able[Stage.DENOISING]
        works = [
            work
            for work in self._on_time()
            if (board.startable(work) or not self._parts.aligned)
            and work.request.id not in self.pieces
            and board.able[work.stage] & denoisers
        ]
        slots = denoisers & board.free if self._parts.aligned else denoisers
        groups = [self._options(work) for work in works]
        items = [[o.item(w.request.weight) for o in g] for w, g in zip(works, groups, strict=True)]
        choice = pack(items, slots.bit_count())
        chosen = [(w, g[index]) for w, g, index in zip(works, groups, choice, strict=True) if g[index].degree]
        places = arrange(board, [(work, option.degree) for work, option in chosen], slots)
        for work, option in chosen:
            if work.request.id in places:
                self._begin(work, places[work.request.id], option.steps)
        return sum(group[index].worth[0] for group, index in zip(items, choice, strict=True))

    def _options(self, work: Work) -> list[Option]:
        """Waiting first, then the degrees of the cheapest mix."""
        end, fastest = self.window.end, work.ladder.fastest
        waiting = Option(0, 0, work.due - max(end, work.ready) - work.encode - work.steps * fastest)
        begin = max(work.ready, self.board.problem.now) + work.encode
        if work.stage is Stage.DECODING:
            return [waiting, Option(1, 0, work.due - begin)]
        if work.stage is Stage.ENCODING and not self._can_follow(begin):
            return [waiting, Option(1, 0, work.due - max(end, begin) - work.steps * fastest)]
        options = [waiting]
        ladder = usable(work.ladder, self.board.problem.round_s)
        mix = ladder.cheapest(work.steps, work.due - begin) or ladder.at_once(work.steps)
        for degree, wanted in ((mix.wide, mix.wide_steps), (mix.narrow, mix.narrow_steps)):
            steps = min(wanted, self._steps(ladder.step[degree], begin))
            if steps:
                left = work.steps - steps
                done = begin + steps * ladder.step[degree]
                slack = work.due - (max(end, done) + left * fastest if left else done)
                options.append(Option(degree, steps, slack))
        return options

    def _steps(self, step: float, begin: float) -> int:
        """Steps of this length in the round, for an order that can begin then."""
        round_s, window = self.board.problem.round_s, self.window
        if step > round_s:
            return 1
        return int(min(round_s, window.end + window.grace - begin) / step + TOLERANCE)

    def _begin(self, work: Work, block: int, steps: int) -> None:
        """Give the order if its block is free, else keep the block for it."""
        board = self.board
        if work.stage is Stage.DECODING and not block & board.able[work.stage]:
            piece = self.order(work, 1, 0)
            if piece is not None:
                self.give(piece)
            return
        begin, _ = self._window(block, work.ready)
        if work.stage is Stage.ENCODING:
            single = next((bit for bit in _bits(block & board.able[work.stage]) if bit & self.free), 0)
            single = single or self._find(1, work) or 0
            if single and board.startable(work):
                begin, _ = self._window(single, work.ready)
                self.give(Piece(work, single, 0, begin, begin + work.encode))
                begin += work.encode
        elif board.startable(work) and block & ~self.free == 0:
            if work.stage is Stage.DECODING:
                piece = Piece(work, block, 0, begin, begin + work.decode)
            else:
                piece = self._piece(work, block, begin, steps)
            if piece is not None:
                self.give(piece)
            return
        self._reserve(block, begin)

    # Everybody else.

    def _fill(self) -> None:
        """GPUs that the packing left idle go to requests that it let wait, least slack first."""
        waiting = [w for w in self._on_time() if self.board.startable(w) and w.request.id not in self.pieces]
        for work in sorted(waiting, key=_slack):
            ladder = usable(work.ladder, self.board.problem.round_s)
            mix = ladder.cheapest(work.steps, work.due - work.ready) or ladder.at_once(work.steps)
            for degree in reversed(ladder.degrees):
                piece = self.order(work, degree, work.steps) if degree <= mix.wide else None
                if piece is not None:
                    self.give(piece)
                    break

    def _lane(self) -> None:
        """Late work and work without a deadline, oldest first, where a GPU is left."""
        lane = [w for w in self.board.works if w.late or not w.has_deadline]
        lane = [work for work in lane if work.request.id not in self.pieces]
        for work in sorted(lane, key=lambda w: (w.late, w.request.arrived_at, w.request.id)):
            if self.board.startable(work) and not (work.late and work.request.drop_late):
                degree = usable(work.ladder, self.board.problem.round_s).degrees[0]
                piece = self.order(work, degree, work.steps)
                if piece is not None:
                    self.give(piece)

    def _speed_up(self) -> None:
        """Let orders last for the whole round where they would leave their GPUs idle, then widen them."""
        for piece in list(self.pieces.values()):
            if self._parts.aligned and piece.work.stage is Stage.DENOISING:
                _, limit = self._window(piece.block, piece.begin)
                longer = self._piece(piece.work, piece.block, piece.begin, piece.work.steps, limit)
                if longer is not None:
                    self.give(longer)
        self.widen()

    def _begin_apart(self) -> None:
        """Encode and decode on GPUs that do not denoise."""
        apart = self.free & ~self.board.able[Stage.DENOISING]
        if not apart:
            return
        others, self.free = self.free & ~apart, apart
        for work in self._stages():
            piece = self.order(work, 1, 0)
            if piece is not None:
                self.give(piece)
        self.free |= others

    def _begin_stages(self) -> None:
        """Encode and decode on idle GPUs, as far as that ends by the next round."""
        window = self.window
        for work in self._stages():
            piece = self.order(work, 1, 0)
            if piece is not None and piece.end <= window.opens + 2 * window.grace:
                self.give(piece)

    def _stages(self) -> list[Work]:
        """What can be encoded or decoded now and has no order yet, most urgent first."""
        waiting = (
            work
            for work in self.board.works
            if work.stage is not Stage.DENOISING
            and self.board.startable(work)
            and work.request.id not in self.pieces
            and not (work.late and work.request.drop_late)
        )
        return sorted(waiting, key=lambda w: (w.late, w.due, w.request.arrived_at, w.request.id))

    def _on_time(self) -> Iterator[Work]:
        return (work for work in self.board.works if work.has_deadline and not work.late)

    # Time.

    def _piece(
        self, work: Work, block: int, begin: float, steps: int, limit: float = math.inf
    ) -> Piece | None:
        """As a line-up's, but within the round, unless a step is longer than that."""
        if work.ladder.step[block.bit_count()] <= self.board.problem.round_s:
            window = self.window
            # The paper's rounds know nothing of what a change of group costs.
            lag = self._lag(work, block, work.held, begin, work.ready)
            limit = min(limit, window.end + window.grace + lag)
        return super()._piece(work, block, begin, steps, limit)

    def _can_follow(self, encoded: float) -> bool:
        """Whether the steps of what is encoded then can still be ordered in this round, a lead ahead."""
        problem = self.board.problem
        return encoded - (problem.horizon - problem.now) <= self.window.closes

    def _again_at(self) -> float:
        if not self._parts.aligned:
            return math.inf
        window = self.window
        begun = self.board.problem.now >= window.opens - TOLERANCE
        return window.end - window.grace if begun else window.opens


@lru_cache(maxsize=1024)
def usable(ladder: Ladder, round_s: float) -> Ladder:
    """The ladder without the degrees whose step is longer than a round; the fastest where all are."""
    fits = {degree: step for degree, step in ladder.step.items() if step <= round_s + TOLERANCE}
    return Ladder(fits or {ladder.widest: ladder.fastest})


def _slack(work: Work) -> tuple[float, str]:
    """Seconds that the work can wait; by id among equals."""
    return work.due - work.ready - work.encode - work.steps * work.ladder.fastest, work.request.id


def _bits(mask: int) -> Iterator[int]:
    while mask:
        bit = mask & -mask
        yield bit
        mask ^= bit
