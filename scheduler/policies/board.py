"""The problem as the heuristics see it: what is left of every request, and when every GPU is free."""

import math
from dataclasses import dataclass

from scheduler.placement import able, layout_of, mask_of
from scheduler.policies.mix import TOLERANCE, Ladder, ladder
from scheduler.policies.sharing import Lanes, lanes
from scheduler.problem import Problem, Request, Running, Stage


@dataclass(slots=True, eq=False)
class Work:
    """What is left of a request. `held` is the mask of its slots; times in seconds.

    The denoising must end by `hard_due`, the deadline less the decoding, and should end by `due`, the
    margin before that. `late`: it cannot be met any more, even at the fastest degree.
    """

    request: Request
    ladder: Ladder
    ready: float
    encode: float
    decode: float
    due: float
    hard_due: float
    late: bool
    held: int
    lanes: Lanes
    """Batches worth it."""

    @property
    def stage(self) -> Stage:
        """The next stage to plan."""
        return self.request.stage

    @property
    def steps(self) -> int:
        """Denoising steps that are not ordered yet."""
        return self.request.steps

    def step(self, degree: int, batch: int = 1) -> float:
        """Seconds of a step, alone or with others in a batch worth it."""
        return self.ladder.step[degree] if batch == 1 else self.lanes[degree][batch - 1]

    def can_share(self, batch: int) -> bool:
        """Whether a step of so many is worth it."""
        return not self.request.alone and any(len(times) >= batch for times in self.lanes.values())

    def shared_degree(self, batch: int) -> int:
        """The degree at which a step of so many takes the fewest GPU-seconds."""
        fit = [
            (degree * times[batch - 1], degree) for degree, times in self.lanes.items() if len(times) >= batch
        ]
        return min(fit)[1]

    @property
    def has_deadline(self) -> bool:
        """Whether it is anything but best effort."""
        return self.due < math.inf


class Board:
    """The GPUs and the outstanding work at the start of a round; never changed by a policy.

    `ended` are orders under way that the problem takes to have ended early (`interrupt.cut`).
    """

    def __init__(self, problem: Problem, ended: tuple[Running, ...] = ()) -> None:
        self.problem = problem
        self.ended = ended
        self.busy = frozenset(running.request.id for running in ended)
        """Whose orders these are."""
        self.layout = layout_of(problem.gpus)
        self.free_at: list[float] = [math.inf] * (self.layout.slots[-1] + 1)
        for gpu in problem.gpus:
            self.free_at[gpu.slot] = max(gpu.free_at, problem.now)
        self.ends: dict[int, float] = {1 << slot: self.free_at[slot] for slot in self.layout.slots}
        """When each block is free."""
        for block, (low, high) in self.layout.halves.items():
            self.ends[block] = max(self.ends[low], self.ends[high])
        self.free: int = mask_of(gpu.slot for gpu in problem.gpus if gpu.free_at <= problem.horizon)
        """GPUs that can be given an order now."""
        self.able: dict[Stage, int] = able(problem.gpus)
        """GPUs that can run each stage."""
        singles = self.layout.blocks.get(1, ())
        self._singles = {
            stage: tuple(block for block in singles if block & slots) for stage, slots in self.able.items()
        }
        self.works: list[Work] = [self._work(request) for request in problem.requests]

    def blocks(self, stage: Stage, degree: int) -> tuple[int, ...]:
        """Blocks of this degree on which the stage can run, free or not, ascending."""
        return self._singles[stage] if degree == 1 else self.layout.blocks.get(degree, ())

    def block_ends(self, stage: Stage) -> dict[int, list[float]]:
        """When each block of which all GPUs can run the stage is free, by size."""
        able = self.able[stage]
        return {
            size: [self.ends[block] for block in blocks if block & able == block]
            for size, blocks in self.layout.blocks.items()
        }

    def startable(self, work: Work) -> bool:
        """Whether the work can be given an order now."""
        return self.problem.startable(work.request)

    def _work(self, request: Request) -> Work:
        problem, profile = self.problem, self.problem.profile
        steps = ladder(profile, request.width, request.height, self.layout.max_degree)
        encode = profile.encode() if request.stage is Stage.ENCODING else 0.0
        decode = profile.decode(request.width, request.height)
        ready = max(request.ready_at, problem.now)
        ends = ready + encode + request.steps * steps.fastest
        due = request.deadline - decode
        # A margin that could not be kept even alone is no reason to give up.
        margin = min(problem.margin_s, max(0.0, due - ends))
        late = ends > due + TOLERANCE
        shared = lanes(profile, request.width, request.height, self.layout.max_degree)
        held = mask_of(request.slots)
        return Work(request, steps, ready, encode, decode, due - margin, due, late, held, shared)
