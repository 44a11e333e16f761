"""Steps that a step cache passes over: which they are, and plans that do not count them."""

import itertools
from functools import partial

import pytest
from chaos import PROFILE, SIZES, chaotic, check_books, check_steps
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.conditions import Conditions
from bench.simulator import Arrival, Simulation
from scheduler.config import Config
from scheduler.orders import Report
from scheduler.policies import resolve
from scheduler.problem import Assignment, Plan, Stage
from scheduler.rounds import Rounds
from scheduler.skipping import left, reach, shared
from scheduler.tracking import Submission
from tetriserve.step_cache import computed


@given(st.integers(1, 1000), st.integers(0, 9))
def test_the_ends_are_computed_and_each_so_many_in_the_middle(steps, every):
    found = list(computed(steps, every))
    assert found == sorted(set(found))
    assert (found[0], found[-1]) == (0, steps - 1)
    gaps = [b - a for a, b in itertools.pairwise(found)]
    assert all(1 <= gap <= max(1, every) for gap in gaps)
    if every <= 1:
        assert len(found) == steps


def test_what_is_saved():
    saved = {(steps, every): steps - len(computed(steps, every)) for steps in (4, 20, 50) for every in (2, 3)}
    assert saved == {(4, 2): 1, (4, 3): 1, (20, 2): 7, (20, 3): 9, (50, 2): 17, (50, 3): 23}


@given(st.integers(1, 60), st.integers(1, 5), st.data())
def test_orders_of_computed_steps_cover_all_steps(steps, every, data):
    found = computed(steps, every)
    at = data.draw(st.integers(0, steps - 1), "where a truncated order has left it")
    while at < steps:
        wanted = data.draw(st.integers(1, left(found, at)))
        before, step = left(found, at), reach(found, at, wanted)
        assert step >= 1
        assert len(set(found) & set(range(at, at + step))) == wanted
        at += step
        assert left(found, at) == before - wanted
    assert at == steps


def test_a_step_that_is_shared_takes_time_if_any_computes_it():
    assert shared([((0, 1, 4, 7), 1), ((0, 3, 6, 9), 0)]) == [0, 3, 6], "until the first one is through"
    assert shared([((0, 3, 6, 9), 4)]) == [2, 5]


@pytest.fixture
def core() -> Rounds:
    """An order of five of a request's six steps, from 0 to 3 s: those that take time are 0, 3 and 4."""
    core = Rounds(Config(lead_s=2.0), PROFILE)
    core.computed = lambda _: (0, 3, 4, 5)
    core.executor_joined(0.0, 0)
    core.submit(0.0, Submission("r", 512, 512, 6, 60.0))
    core.problem(0.0)
    core.commit(0.0, Plan((Assignment(("r",), Stage.ENCODING, (0,), 0, 0.0, 0.0),)))
    core.order_done(0.0, 1, Report(0, held={"r": 0}))
    core.problem(0.0)
    core.commit(0.0, Plan((Assignment(("r",), Stage.DENOISING, (0,), 3, 0.0, 3.0),)))
    return core


def test_what_an_order_still_takes_are_its_computed_steps(core):
    for done_at in (1.0, 1.0, 1.0, 2.0, 3.0):
        core.step_done(done_at, 2)
        assert core.snapshot(done_at).gpus[0].free_at == pytest.approx(3.0)


def test_an_order_is_not_ended_among_steps_that_take_no_time(core):
    (running,) = core.snapshot(0.5).running
    assert (running.ends, running.request.steps) == (pytest.approx(1.0), 3)
    # Too near to be told: it is the next that takes time.
    (running,) = core.snapshot(0.999).running
    assert (running.ends, running.request.steps) == (pytest.approx(2.0), 2)


def simulate(policy, arrivals, every, **conditions):
    return Simulation(
        policy,
        PROFILE,
        4,
        arrivals,
        config=Config(round_s=0.25, lead_s=0.1),
        conditions=Conditions(**conditions),
        computed=partial(computed, every=every),
    ).run()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 3), st.sampled_from(SIZES), st.integers(1, 30)), min_size=1, max_size=10),
    st.integers(0, 1000),
    st.sampled_from([2, 3]),
)
def test_every_step_runs_once_whatever_the_policy(wanted, seed, every):
    arrivals = [Arrival(at, Submission(f"r{i}", *size, steps)) for i, (at, size, steps) in enumerate(wanted)]
    outcomes = simulate(chaotic(seed), arrivals, every, step_cv=0.1, seed=seed)
    check_books(outcomes, 4)
    for tracked in outcomes.requests:
        check_steps(tracked)


@pytest.mark.parametrize("name", ["edf", "cp-sat", "tetriserve", "srtf", "fixed:1"])
def test_a_request_takes_as_long_as_its_computed_steps(name):
    steps = 20
    for every in (1, 2, 3):
        (tracked,) = simulate(
            resolve(name), [Arrival(0.0, Submission("r", 512, 512, steps, 60.0))], every
        ).requests
        check_steps(tracked)
        spans = [span for span in tracked.spans if span.stage is Stage.DENOISING]
        seconds = sum(
            len(set(computed(steps, every)) & set(range(span.first_step, span.first_step + span.steps)))
            * PROFILE.step(512, 512, len(span.slots))
            for span in spans
        )
        assert sum(span.end - span.begin for span in spans) == pytest.approx(seconds)
        assert not tracked.late


def test_a_deadline_that_only_the_cache_meets_is_met():
    seconds = PROFILE.encode() + PROFILE.decode(512, 512) + 16 * PROFILE.step(512, 512, 4) + 0.1
    arrivals = [Arrival(0.0, Submission("r", 512, 512, 20, seconds))]
    assert simulate(resolve("edf"), arrivals, 1).requests[0].late
    assert not simulate(resolve("edf"), arrivals, 2).requests[0].late
