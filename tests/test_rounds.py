"""The core under random workloads and a random policy: every request ends, every step runs once."""

import itertools
import math
import random
from collections import defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st

from bench.simulator import Arrival, Conditions, Simulation
from scheduler.placement import Blocks
from scheduler.problem import Assignment, Plan, Problem, Stage
from scheduler.profile import Profile, StepTime
from scheduler.rounds import Config
from scheduler.tracking import Submission, Tracked

SIZES = [(256, 256), (512, 512), (512, 768), (1024, 1024)]
PROFILE = Profile(
    [
        StepTime("step", side, side, degree, 1, (side / 1024) ** 2 * 0.4 / degree**0.7 + 0.01)
        for side in (256, 512, 1024)
        for degree in (1, 2, 4, 8)
    ]
    + [StepTime("encode", 0, 0, 1, 1, 0.02)]
    + [StepTime("decode", side, side, 1, 1, (side / 1024) ** 2 * 0.3) for side in (256, 1024)]
)


def chaotic(seed: int):
    """A policy that gives whatever may be given, at random."""

    def policy(problem: Problem, _budget: float) -> Plan:
        rng = random.Random(f"{seed} {problem.now}")
        blocks = Blocks(gpu for gpu in problem.gpus if gpu.free_at <= problem.horizon)
        ends = {gpu.slot: gpu.free_at for gpu in problem.gpus}
        assignments = []
        for request in rng.sample(problem.requests, len(problem.requests)):
            if request.ready_at > problem.horizon:
                continue
            degree = rng.choice(problem.degrees(request))
            block = blocks.find(degree, request.slots)
            if block is None or rng.random() < 0.1:
                continue
            blocks.take(block)
            steps = rng.randint(1, request.steps) if request.stage is Stage.DENOISING else 0
            begin = max(problem.now, request.ready_at, *(ends[slot] for slot in block))
            end = begin + problem.duration(request, degree, steps)
            assignments.append(Assignment(request.id, request.stage, block, steps, begin, end))
        return Plan(tuple(assignments))

    return policy


def check_books(requests: list[Tracked], gpus: int) -> None:
    """Spans hold every step once, in order, and no two of them overlap on a slot."""
    busy = defaultdict(list)
    for tracked in requests:
        assert tracked.stage is Stage.DONE
        assert tracked.late == (tracked.finished_at > tracked.deadline)
        kinds = [span.stage for span in tracked.spans]
        assert kinds[0] is Stage.ENCODING
        assert kinds[-1] is Stage.DECODING
        steps = [s for span in tracked.spans for s in range(span.first_step, span.first_step + span.steps)]
        assert steps == list(range(tracked.submission.steps))
        for before, after in itertools.pairwise(tracked.spans):
            assert before.end <= after.begin + 1e-9
        for span in tracked.spans:
            assert set(span.slots) <= set(range(gpus))
            for slot in span.slots:
                busy[slot].append((span.begin, span.end))
    for spans in busy.values():
        spans.sort()
        assert all(end <= begin + 1e-9 for (_, end), (begin, _) in itertools.pairwise(spans))


requests = st.lists(
    st.builds(
        lambda at, size, steps, deadline: (at, size, steps, deadline),
        st.floats(0, 3),
        st.sampled_from(SIZES),
        st.integers(1, 12),
        st.none() | st.floats(0.1, 10),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(
    requests,
    st.sampled_from([1, 2, 3, 4, 8]),
    st.integers(0, 1000),
    st.sampled_from([0.0, 0.05]),
    st.sampled_from([0.0, 0.03]),
    st.sampled_from([0.0, 0.2]),
)
def test_every_request_ends_whatever_the_policy(wanted, gpus, seed, lead, decision, cv):
    arrivals = [
        Arrival(at, Submission(f"r{i}", *size, steps, deadline))
        for i, (at, size, steps, deadline) in enumerate(wanted)
    ]
    conditions = Conditions(step_cv=cv, decision_s=decision, seed=seed, switch_s=0.01)
    simulation = Simulation(
        chaotic(seed), PROFILE, gpus, arrivals, config=Config(lead_s=lead), conditions=conditions
    )
    outcomes = simulation.run()
    assert len(outcomes.requests) == len(wanted)
    check_books(outcomes.requests, gpus)
    assert math.isclose(
        outcomes.busy_seconds, sum(tracked.gpu_seconds for tracked in outcomes.requests), abs_tol=1e-6
    )
