"""Line-ups that share steps, and the program's bound on them, against every way of sharing on one GPU."""

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
from chaos import PATIENT
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.policies import cp_sat, ilp, resolve
from scheduler.policies.board import Board
from scheduler.policies.edf import by_deadline
from scheduler.policies.fluid import build
from scheduler.policies.lineup import Ranking, line_up, on_time
from scheduler.policies.search import give_up, hurry, improve, join, promote
from scheduler.problem import Gpu, Problem, Request, Stage
from scheduler.profile import Profile, StepTime

DECODE_S = 0.05
GROWTH = (1.0, 1.25, 1.5, 1.75)
TIMES = Profile(
    [StepTime("step", 256, 256, 1, n, 0.02 * growth) for n, growth in enumerate(GROWTH, start=1)]
    + [StepTime("step", 256, 256, 2, 1, 0.019), StepTime("decode", 256, 256, 1, 1, DECODE_S)]
)


def moment(deadlines: Sequence[float], gpus: int, steps: Sequence[int] = ()) -> Problem:
    """Requests of 256 x 256 that wait for GPUs that are free."""
    requests = tuple(
        Request(f"r{i}", 256, 256, Stage.DENOISING, left, ready_at=0.0, arrived_at=0.0, deadline=deadline)
        for i, (deadline, left) in enumerate(zip(deadlines, steps or [20] * len(deadlines), strict=True))
    )
    return Problem(0.0, 0.05, 0.25, tuple(Gpu(i, 0.0) for i in range(gpus)), requests, TIMES.limited(gpus))


@pytest.mark.parametrize("policy", ["cp-sat", "ilp"])
def test_who_would_be_lost_shares_the_steps_of_others(policy):
    # Alone 0.45 s, so that two of four are on time; two together take 0.5 s and two decodings.
    plan = resolve(policy)(moment([0.65] * 4, gpus=2), PATIENT)
    assert plan.decision.objective == 4
    assert sorted(a.batch for a in plan.assignments) == [2, 2]
    assert sorted(id for a in plan.assignments for id in a.request_ids) == ["r0", "r1", "r2", "r3"]
    assert resolve("edf")(moment([0.65] * 4, gpus=2), PATIENT).decision.objective == 2


@pytest.mark.parametrize(
    ("change", "on_time"),
    [({}, 2), ({"alone": True}, 1), ({"home": "elsewhere"}, 1), ({"lora": "ink"}, 1)],
    ids=["like the other", "alone", "node", "adapter"],
)
def test_only_who_may_share_steps_does(change, on_time):
    both = moment([0.65] * 2, gpus=1)
    problem = replace(both, requests=(both.requests[0], replace(both.requests[1], **change)))
    plan = resolve("cp-sat")(problem, PATIENT)
    assert plan.decision.objective == on_time
    assert [a.batch for a in plan.assignments] == [on_time]


def partitions(names: Sequence[int]) -> Iterator[list[tuple[int, ...]]]:
    """All ordered ways of running some of these in batches, one after the other."""
    yield []
    for size in range(1, len(names) + 1):
        for batch in itertools.combinations(names, size):
            rest = [name for name in names if name not in batch]
            for more in partitions(rest):
                yield [batch, *more]


def reached(batches: Sequence[Sequence[int]], deadlines: Sequence[float], steps: Sequence[int]) -> int:
    """How many are on time on one GPU, each decoded as soon as its steps are done."""
    now, hits = 0.0, 0
    for batch in batches:
        done, left = 0, sorted(batch, key=lambda i: (steps[i], deadlines[i]))
        while left:
            count = steps[left[0]] - done
            now += count * 0.02 * GROWTH[len(left) - 1]
            done += count
            now += DECODE_S
            hits += now <= deadlines[left.pop(0)] + 1e-9
    return hits


@pytest.mark.parametrize("solver", [cp_sat.solve, ilp.solve], ids=["cp-sat", "ilp"])
@pytest.mark.parametrize("seed", range(8))
def test_no_way_of_sharing_exceeds_the_bound(solver, seed):
    rng = random.Random(seed)
    count = rng.randint(2, 4)
    steps = [rng.randint(5, 20) for _ in range(count)]
    deadlines = [0.02 * n + DECODE_S + rng.uniform(0.0, 0.6) for n in steps]
    board = Board(moment(deadlines, 1, steps))
    program = build(board, by_deadline(board.works), batches=True)
    best = max(reached(batches, deadlines, steps) for batches in partitions(range(count)))
    assert program.weight(solver(program, [], frozenset(), PATIENT).bound) >= best
    decision = resolve("cp-sat")(board.problem, PATIENT).decision
    assert decision.objective <= best
    assert decision.bound >= best - 1e-9


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 9), st.sampled_from([1, 2]))
def test_no_line_up_exceeds_the_bound(seed, count, gpus):
    rng = random.Random(seed)
    steps = [rng.randint(1, 25) for _ in range(count)]
    board = Board(moment([0.02 * n + DECODE_S + rng.expovariate(3) for n in steps], gpus, steps))
    works = by_deadline(board.works)
    program = build(board, works, batches=True)
    bound = program.weight(cp_sat.solve(program, [], frozenset(), PATIENT).bound)
    first = line_up(board, Ranking(works))
    better = improve(first, (join, hurry, promote, give_up), 300)
    assert on_time(first) <= on_time(better) <= bound + 1e-6
    for work in works:
        if work.request.id in better.finish:
            assert better.finish[work.request.id] <= work.request.deadline + 1e-6
    for piece in better.pieces.values():
        members = (piece.work, *piece.guests)
        assert all(piece.steps <= work.steps for work in members)
        step = piece.work.step(piece.block.bit_count(), len(members))
        assert math.isclose(piece.end - piece.begin, (piece.steps * step) or DECODE_S, abs_tol=1e-9)
