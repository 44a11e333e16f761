"""Selective batching takes in who would wait, where it saves GPU-seconds and hurts no deadline."""

import math
import random
from dataclasses import replace

import pytest
from chaos import check_books, check_steps
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.simulator import Arrival, Outcomes, Simulation
from scheduler.config import Config
from scheduler.policies import resolve
from scheduler.policies.batching import encode_first, share
from scheduler.problem import Assignment, Gpu, Problem, Request, Stage
from scheduler.profile import Profile, StepTime
from scheduler.tracking import Submission


def profile(growth: float) -> Profile:
    """At 256 a step of n takes 1 + (n - 1) * growth times as long; at 1024 a batch gains nothing."""
    return Profile(
        [StepTime("step", 256, 256, 1, n, 0.02 * (1 + (n - 1) * growth)) for n in (1, 2, 4)]
        + [StepTime("step", 1024, 1024, 1, n, 0.2 * n) for n in (1, 2)]
        + [StepTime("step", side, side, 2, 1, step) for side, step in ((256, 0.019), (1024, 0.11))]
        + [StepTime("decode", 256, 256, 1, 1, 0.05), StepTime("encode", 0, 0, 1, 1, 0.01)]
    )


CHEAP = profile(growth=0.25)


def denoising(name: str, steps: int = 10, deadline: float = math.inf, **more: object) -> Request:
    fields = {"width": 256, "height": 256, "ready_at": 0.0, "arrived_at": 0.0, **more}
    return Request(name, stage=Stage.DENOISING, steps=steps, deadline=deadline, **fields)


def moment(*requests: Request, times: Profile = CHEAP) -> Problem:
    return Problem(0.0, 0.05, 0.25, (Gpu(0, 0.0), Gpu(1, 0.0)), requests, times)


def order(*names: str, steps: int = 10, step: float = 0.02, slots: tuple[int, ...] = (0,)) -> Assignment:
    return Assignment(names, Stage.DENOISING, slots, steps, 0.0, steps * step)


def test_who_waits_joins_and_the_order_ends_no_later():
    problem = moment(denoising("host", 30), denoising("a", 20), denoising("b", 3))
    (shared,) = share(problem, [order("host")])
    # Three: a step of two takes 0.025 s, one of three 0.03; b has no more than 3 left.
    assert shared == Assignment(("host", "a", "b"), Stage.DENOISING, (0,), 3, 0.0, pytest.approx(0.09))


def test_the_earliest_deadline_comes_first_and_no_batch_is_larger_than_measured():
    waiting = [denoising(f"r{i}", deadline=50.0 - i) for i in range(6)]
    (shared,) = share(moment(denoising("host", 30), *waiting), [order("host")])
    assert shared.request_ids == ("host", "r5", "r4", "r3")


def test_the_host_keeps_its_deadline():
    # 8 steps of 0.025 s, 22 of 0.02 and two decodings take 0.74 s; half a round is kept free.
    for deadline, expected in ((0.86, 1), (0.87, 2)):
        problem = moment(denoising("host", 30, deadline), denoising("a"))
        assert share(problem, [order("host")])[0].batch == expected
    late = moment(denoising("host", 30, 0.1), denoising("a"))
    assert share(late, [order("host")])[0].batch == 2, "it is late in any case"
    assert share(late, [order("a")])[0].batch == 1, "what is late must not slow down what is not"


def test_a_newcomer_must_not_lose_its_deadline_by_it():
    # Eight steps of 0.025 s end at 0.2; the other two and the decoding take 0.09 at best.
    for deadline, expected in ((0.28, 1), (0.3, 2)):
        problem = moment(denoising("host"), denoising("a", 10, deadline))
        assert share(problem, [order("host")])[0].batch == expected


@pytest.mark.parametrize(
    "other",
    [
        denoising("a", width=1024, height=1024),
        denoising("a", alone=True),
        denoising("a", ready_at=0.04),
        denoising("a", ready_at=1.0),
        denoising("a", home="elsewhere"),
        denoising("a", deadline=0.01, drop_late=True),
        Request("a", 256, 256, Stage.DECODING, 0, 0.0, 0.0),
    ],
    ids=["size", "alone", "begins later", "not free", "node", "to be dropped", "stage"],
)
def test_who_cannot_join_does_not(other):
    given = [order("host")]
    assert share(moment(denoising("host", 30), other), given) == tuple(given)


def test_it_must_save_gpu_seconds():
    problem = moment(denoising("host", 30), denoising("a"), times=profile(growth=0.97))
    assert share(problem, [order("host")]) == (order("host"),)
    large = {"width": 1024, "height": 1024}
    problem = moment(denoising("host", **large), denoising("a", **large))
    assert share(problem, [order("host", steps=4, step=0.2)])[0].batch == 1
    # Nor is a wide order a saving: each newcomer costs it twice.
    wide = [order("host", step=0.019, slots=(0, 1))]
    twice = profile(growth=0.6)
    assert share(moment(denoising("host", 30), denoising("a"), times=twice), wide) == tuple(wide)


def run(policy: str, rate: float, seed: int = 0, gpus: int = 2) -> Outcomes:
    """Only 256s of 20 steps, which take 0.46 s alone, each with 1.5 s."""
    rng = random.Random(seed)
    at, arrivals = 0.0, []
    for number in range(120):
        at += rng.expovariate(rate)
        arrivals.append(Arrival(at, Submission(f"r{number}", 256, 256, 20, 1.5)))
    return Simulation(resolve(policy), CHEAP, gpus, arrivals, config=Config(lead_s=0.05)).run()


def test_in_a_rush_more_are_on_time_for_fewer_gpu_seconds():
    without, batched = run("tetriserve:scale-up", 5.0), run("tetriserve", 5.0)
    on_time = [sum(not t.late for t in outcomes.requests) for outcomes in (without, batched)]
    assert on_time[1] > on_time[0] + 5
    assert batched.tally.busy_seconds < 0.9 * without.tally.busy_seconds
    assert {span.batch for t in batched.requests for span in t.spans} == {1, 2, 3, 4}


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["tetriserve", "tetriserve:event"]), st.sampled_from([1, 2, 4]))
def test_every_step_runs_once(seed, policy, gpus):
    outcomes = run(policy, 8.0, seed, gpus)
    check_books(outcomes, gpus)
    for tracked in outcomes.requests:
        check_steps(tracked)


@pytest.mark.parametrize("seed", range(3))
def test_every_step_runs_once_where_line_ups_share(seed):
    outcomes = run("cp-sat", 5.0, seed)
    check_books(outcomes, 2)
    for tracked in outcomes.requests:
        check_steps(tracked)
    assert max(span.batch for tracked in outcomes.requests for span in tracked.spans) > 1


def to_encode(name: str, deadline: float = 5.0, **more: object) -> Request:
    return replace(denoising(name, deadline=deadline), stage=Stage.ENCODING, **more)


def test_who_would_share_steps_is_encoded_before_the_order_goes_on():
    problem = moment(denoising("host", 30, 5.0), to_encode("a"), to_encode("b"))
    (put_off,) = encode_first(problem, [order("host")])
    assert put_off == Assignment(("a",), Stage.ENCODING, (0,), 0, 0.0, 0.01), "one at a time"
    two = [order("host"), order("guest", slots=(1,))]
    problem = moment(denoising("host", 30, 5.0), denoising("guest", 30, 5.0), to_encode("a"), to_encode("b"))
    assert [a.request_ids for a in encode_first(problem, two)] == [("a",), ("b",)]


@pytest.mark.parametrize(
    ("host", "waiting", "growth"),
    [
        (denoising("host", 30, 5.0), to_encode("a", width=1024, height=1024), 0.25),
        (denoising("host", 30, 5.0), to_encode("a", ready_at=1.0), 0.25),
        (denoising("host", 30, 5.0), to_encode("a", deadline=0.1), 0.25),
        (denoising("host", 30, 5.0), to_encode("a"), 0.97),
        (denoising("host", 30, 0.87), to_encode("a"), 0.25),
        (denoising("host", 30, 0.1), to_encode("a"), 0.25),
    ],
    ids=["size", "not free", "late", "gains nothing", "the host cannot wait", "the host is late"],
)
def test_nobody_else_is_encoded_first(host, waiting, growth):
    given = (order("host"),)
    assert encode_first(moment(host, waiting, times=profile(growth)), given) == given


def test_nor_is_a_wide_order_held_up():
    wide = (order("host", step=0.019, slots=(0, 1)),)
    assert encode_first(moment(denoising("host", 30, 5.0), to_encode("a")), wide) == wide


@pytest.mark.parametrize("policy", ["edf", "cp-sat"])
def test_in_a_rush_edf_shares_steps_as_well(policy):
    batched, paper = run(policy, 5.0), run("tetriserve", 5.0)
    assert batched.rejected == 0
    on_time = [sum(not t.late for t in outcomes.requests) for outcomes in (batched, paper)]
    assert on_time[0] >= on_time[1] - 2
    assert batched.tally.batches < 0.9 * sum(map(len, batched.tally.steps_run.values()))
