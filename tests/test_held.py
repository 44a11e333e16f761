"""A scheduler goes on from what executors still hold when they register again."""

import random
from collections import Counter

import pytest
from chaos import PROFILE, SIZES, chaotic
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.conditions import Conditions, random_faults
from bench.simulator import Arrival, Simulation
from scheduler.config import Config
from scheduler.orders import Release
from scheduler.problem import Stage
from scheduler.rounds import Rounds
from scheduler.tracking import Submission


def restarted(checkpoint: int) -> Rounds:
    """A scheduler that has read one request from its journal, with a checkpoint of so many steps."""
    rounds = Rounds(Config(), PROFILE)
    rounds.submit(0.0, Submission("r", 256, 256, 10), checkpoint=checkpoint)
    rounds.executor_joined(1.0, 0)
    rounds.executor_joined(1.0, 1)
    return rounds


def planned(rounds: Rounds) -> tuple[Stage | None, int, tuple[int, ...]]:
    tracked = rounds.requests["r"]
    return tracked.next_stage, tracked.next_step, tracked.holders


def test_it_goes_on_from_the_furthest_state_held():
    rounds = restarted(checkpoint=2)
    assert planned(rounds) == (Stage.DENOISING, 2, ())
    rounds.executor_holds(1.0, 0, {"r": 4})
    rounds.executor_holds(1.0, 1, {"r": 7})
    assert planned(rounds) == (Stage.DENOISING, 7, (1,))
    assert rounds.requests["r"].steps_done == 7


def test_a_newer_checkpoint_is_preferred():
    rounds = restarted(checkpoint=5)
    rounds.executor_holds(1.0, 0, {"r": 3})
    assert planned(rounds) == (Stage.DENOISING, 5, ())


def test_a_finished_latent_is_decoded():
    rounds = restarted(checkpoint=0)
    rounds.executor_holds(1.0, 0, {"r": 10})
    assert planned(rounds) == (Stage.DECODING, 10, (0,))


def test_what_nobody_waits_for_is_released():
    rounds = restarted(checkpoint=0)
    effects = rounds.executor_holds(1.0, 1, {"ended": 3, "r": 11})
    assert Release("ended", (1,)) in effects
    assert Release("r", (1,)) in effects
    assert planned(rounds) == (Stage.ENCODING, 0, ())


def test_states_are_released_when_the_request_ends():
    rounds = restarted(checkpoint=0)
    rounds.executor_holds(1.0, 1, {"r": 4})
    assert Release("r", (1,)) in rounds.cancel(2.0, "r")


@pytest.mark.parametrize("lossy", [False, True])
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_executors_hold_nothing_of_requests_that_have_ended(lossy, seed):
    """Done or cancelled, whether or not executors were lost meanwhile."""
    rng = random.Random(seed)
    arrivals = [
        Arrival(rng.uniform(0, 3), Submission(f"r{i}", *rng.choice(SIZES), rng.randint(1, 12)))
        for i in range(8)
    ]
    simulation = Simulation(
        chaotic(seed),
        PROFILE,
        4,
        arrivals,
        config=Config(lead_s=0.05),
        conditions=Conditions(switch_s=0.01, latency_s=0.002, checkpoint_s=0.01, seed=seed),
        faults=random_faults(range(4), per_hour=1500, repair_s=0.5, seed=seed) if lossy else (),
        cancellations=[(rng.uniform(0, 4), f"r{i}") for i in range(4)],
    )
    outcomes = simulation.run()
    assert Counter(t.stage for t in outcomes.requests)[Stage.CANCELLED] <= 4
    # What was said last is still under way.
    clock = simulation._clock
    until = clock.now + 0.1
    while clock.next_at <= until:
        clock.step()
    assert not any(simulation._fleet._held.values())
