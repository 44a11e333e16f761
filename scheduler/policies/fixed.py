"""Static degrees, as baselines: `fixed:K` (as xDiT is deployed) and `rssp` (one degree a resolution).

First come, first served: a request takes its block of GPUs at its first order and keeps it to its last,
one request at a time. Nobody overtakes the head of the queue, so that wide requests are not starved.
"""

from collections.abc import Callable

from scheduler.placement import Blocks
from scheduler.problem import Assignment, Plan, Policy, Problem, Request, Stage

Roles = dict[int, frozenset[Stage]]
"""What each slot can run."""
EFFICIENCY = 0.7
"""Least speed-up per GPU that a resolution's degree must have; gives 1 / 1 / 2 / 8, the paper's degrees
for RSSP, on step times like those of FLUX.1-dev at 256, 512, 1024 and 2048."""


def fixed(argument: str) -> Policy:
    """Static groups of K GPUs. ValueError: K is no power of two."""
    degree = int(argument) if argument.isdecimal() else 0
    if degree < 1 or degree & (degree - 1):
        raise ValueError(f"fixed:K takes a power of two, not {argument!r}")
    return _static(lambda problem, _request: min(degree, problem.profile.max_degree))


def rssp() -> Policy:
    """Resolution-specific sequence parallelism: the widest degree that is efficient at the size."""
    return _static(_efficient)


def _efficient(problem: Problem, request: Request) -> int:
    profile, size = problem.profile, (request.width, request.height)
    alone = profile.step(*size)
    return max(k for k in profile.degrees(*size) if alone >= EFFICIENCY * k * profile.step(*size, k))


def _static(degree_of: Callable[[Problem, Request], int]) -> Policy:
    def plan(problem: Problem, _budget_s: float) -> Plan:
        """Orders for this round; none for requests that are about to be dropped, whose GPUs are free."""
        late = [request for request in problem.requests if problem.is_late(request)]
        dropped = {request.id for request in late if request.drop_late}
        blocks = Blocks(problem.gpus)
        free_at = {gpu.slot: gpu.free_at for gpu in problem.gpus}
        able_to = {gpu.slot: gpu.roles for gpu in problem.gpus}
        waiting: list[Request] = []
        assignments = []
        for request in problem.requests:
            if request.id in dropped:
                continue
            block = _block_of(blocks, request.slots, degree_of(problem, request))
            if block is None or not _runs_on(able_to, request, block):
                waiting.append(request)
                continue
            if not blocks.free.issuperset(block):
                # After a fault two can have come to share GPUs: one at a time.
                continue
            blocks.take(block)
            if problem.startable(request) and all(free_at[s] <= problem.horizon for s in block):
                assignments.append(_assignment(problem, request, block, able_to, free_at))
        for slot in [slot for slot in blocks.free if free_at[slot] > problem.horizon]:
            blocks.take([slot])
        for request in sorted(waiting, key=lambda r: (r.arrived_at, r.id)):
            if not problem.startable(request):
                continue
            found = blocks.find(degree_of(problem, request))
            if found is None or not _runs_on(able_to, request, found):
                alone = request.stage is not Stage.DENOISING
                found = blocks.find(1, (), request.stage) if alone else None
            if found is None:
                if any(request.stage in roles for roles in able_to.values()):
                    break
                continue
            blocks.take(found)
            assignments.append(_assignment(problem, request, found, able_to, free_at))
        return Plan(tuple(assignments), tuple(request.id for request in late))

    return plan


def _block_of(blocks: Blocks, slots: tuple[int, ...], degree: int) -> tuple[int, ...] | None:
    """The block that a request has; None where it has none yet, or one of its executors is gone."""
    if not slots:
        return None
    first = slots[0] // degree * degree
    return next((block for block in blocks.every(degree) if block[0] == first), None)


def _runs_on(able_to: Roles, request: Request, block: tuple[int, ...]) -> bool:
    """Whether a slot of the block can run the request's next stage; blocks are of slots that denoise."""
    return any(request.stage in able_to[slot] for slot in block)


def _assignment(
    problem: Problem, request: Request, block: tuple[int, ...], able_to: Roles, free_at: dict[int, float]
) -> Assignment:
    slots = tuple(slot for slot in block if request.stage in able_to[slot])
    if request.stage is not Stage.DENOISING:
        slots = slots[:1]
    steps = problem.steps_per_order(request, len(slots))
    begin = max(problem.now, request.ready_at, *(free_at[slot] for slot in slots))
    end = begin + problem.duration(request, len(slots), steps)
    return Assignment((request.id,), request.stage, slots, steps, begin, end)
