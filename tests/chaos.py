"""A policy that gives whatever may be given, at random, and what must hold of any run."""

import itertools
import random
from collections import defaultdict

from bench.simulator import Outcomes
from scheduler.placement import Blocks
from scheduler.problem import Assignment, Plan, Problem, Stage
from scheduler.profile import Profile, StepTime
from scheduler.tracking import Tracked

PATIENT = 1000.0
"""A budget that is never used up, so that what a solver finds depends on the moment alone."""
SIZES = [(256, 256), (512, 512), (512, 768), (1024, 1024)]
PROFILE = Profile(
    [
        StepTime("step", side, side, degree, batch, batch * (side / 1024) ** 2 * 0.4 / degree**0.7 + 0.01)
        for side in (256, 512, 1024)
        for degree in (1, 2, 4, 8)
        for batch in (1, 2, 4)
    ]
    + [StepTime("encode", 0, 0, 1, 1, 0.02)]
    + [StepTime("decode", side, side, 1, 1, (side / 1024) ** 2 * 0.3) for side in (256, 1024)]
)


def chaotic(seed: int, longest: int = 1000, degrees: tuple[int, ...] = ()):
    """A policy that gives whatever may be given, at random, alone or in batches, and interrupts as it likes.

    Orders have `longest` steps at most, and one of `degrees`, or else one of those worth using.
    """

    def policy(problem: Problem, _budget: float) -> Plan:
        rng = random.Random(f"{seed} {problem.now}")
        blocks = Blocks(gpu for gpu in problem.gpus if gpu.free_at <= problem.horizon)
        ends = {gpu.slot: gpu.free_at for gpu in problem.gpus}
        assignments = []
        waiting = [request for request in problem.requests if problem.startable(request)]
        rng.shuffle(waiting)
        while waiting:
            request = waiting.pop()
            wide = request.stage is Stage.DENOISING and degrees
            degree = rng.choice(wide or problem.degrees(request))
            block = blocks.find(degree, request.slots, request.stage)
            if block is None or rng.random() < 0.1:
                continue
            blocks.take(block)
            batch = [request]
            if rng.random() < 0.5:
                batch += [other for other in waiting if other.can_join(request)][: rng.randint(1, 3)]
            waiting = [other for other in waiting if other not in batch]
            most = min(longest, *(r.steps for r in batch))
            steps = rng.randint(1, most) if request.stage is Stage.DENOISING else 0
            begin = max(problem.now, *(r.ready_at for r in batch), *(ends[slot] for slot in block))
            end = begin + problem.duration(request, degree, steps, len(batch))
            ids = tuple(r.id for r in batch)
            assignments.append(Assignment(ids, request.stage, block, steps, begin, end))
        given = {request_id for assignment in assignments for request_id in assignment.request_ids}
        under_way = (running.request.id for running in problem.running)
        ended = tuple(key for key in under_way if key not in given and rng.random() < 0.3)
        return Plan(tuple(assignments), interrupted=ended)

    return policy


def check_books(outcomes: Outcomes, gpus: int, slip: float = 0.0) -> None:
    """No order was refused; no two orders overlap on a slot or of a request; late means late.

    Reports and losses may become known `slip` seconds after the fact.
    """
    slip += 1e-9
    assert outcomes.rejected == 0
    busy = defaultdict(set)
    for tracked in outcomes.requests:
        assert tracked.stage.ended
        assert tracked.flights == []
        if tracked.stage is Stage.DONE:
            assert tracked.late == (tracked.finished_at > tracked.deadline)
        for before, after in itertools.pairwise(tracked.spans):
            assert before.end <= after.begin + slip
        for span in tracked.spans:
            assert set(span.slots) <= set(range(gpus))
            for slot in span.slots:
                # What shares its steps with others has its times in common with them.
                busy[slot].add((span.begin, span.end, span.batch, tracked.id if span.batch == 1 else ""))
    for spans in map(sorted, busy.values()):
        assert all(end <= begin + slip for (_, end, *_), (begin, *_) in itertools.pairwise(spans))


def check_steps(tracked: Tracked) -> None:
    """A request without mishaps was encoded, ran every step once and in order, and was decoded."""
    assert tracked.stage is Stage.DONE
    kinds = [span.stage for span in tracked.spans]
    assert kinds[0] is Stage.ENCODING
    assert kinds[-1] is Stage.DECODING
    steps = [s for span in tracked.spans for s in range(span.first_step, span.first_step + span.steps)]
    assert steps == list(range(tracked.submission.steps))
