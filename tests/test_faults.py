"""The core when executors die, leave and err, clients cancel, and messages take their time.

The virtual executors keep the state of every request, and an order begins only where that can be
had: a core that loses track of a step, or frees it too early, leaves the run stuck or refused.
"""

import math

import pytest
from chaos import PROFILE, SIZES, chaotic, check_books, check_steps
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.conditions import Conditions, Fault, random_faults
from bench.simulator import Arrival, Outcomes, Simulation
from scheduler.config import Config
from scheduler.policies import resolve
from scheduler.problem import Stage
from scheduler.tracking import Submission

GPUS = st.sampled_from([1, 2, 3, 4, 8])
ARRIVALS = st.lists(
    st.tuples(st.floats(0, 3), st.sampled_from(SIZES), st.integers(1, 12), st.none() | st.floats(0.1, 10)),
    min_size=1,
    max_size=10,
)
FAULTS = st.lists(
    st.builds(
        Fault,
        at=st.floats(0, 6),
        slot=st.integers(0, 7),
        repair_s=st.sampled_from([0.0, 0.5, 3.0]),
        detection_s=st.sampled_from([0.0, 0.3]),
        clean=st.booleans(),
    ),
    max_size=8,
).map(sorted)
CANCELLATIONS = st.lists(st.tuples(st.floats(0, 6), st.integers(0, 9).map("r{}".format)), max_size=4)
CONDITIONS = st.builds(
    Conditions,
    step_cv=st.sampled_from([0.0, 0.2]),
    switch_s=st.just(0.01),
    decision_s=st.sampled_from([0.0, 0.03]),
    latency_s=st.sampled_from([0.0, 0.05]),
    checkpoint_s=st.sampled_from([None, 0.0, 0.4]),
    error_rate=st.sampled_from([0.0, 0.0, 0.05]),
    seed=st.integers(0, 1000),
)


def run(wanted, gpus, faults, cancellations, conditions, config, policy=None) -> Outcomes:
    arrivals = [
        Arrival(at, Submission(f"r{i}", *size, steps, deadline))
        for i, (at, size, steps, deadline) in enumerate(wanted)
    ]
    simulation = Simulation(
        policy or chaotic(conditions.seed),
        PROFILE,
        gpus,
        arrivals,
        config=config,
        conditions=conditions,
        faults=faults,
        cancellations=cancellations,
    )
    return simulation.run()


@settings(max_examples=300, deadline=None)
@given(
    ARRIVALS,
    GPUS,
    FAULTS,
    CANCELLATIONS,
    CONDITIONS,
    st.builds(
        Config, lead_s=st.sampled_from([0.0, 0.05, 0.3]), grace_s=st.just(0.5), drop_late=st.booleans()
    ),
)
def test_every_request_ends_whatever_happens(wanted, gpus, faults, cancellations, conditions, config):
    outcomes = run(wanted, gpus, faults, cancellations, conditions, config)
    assert len(outcomes.requests) == len(wanted)
    detection_s = max((fault.detection_s for fault in faults), default=0.0)
    known_at_once = not conditions.latency_s and not detection_s
    check_books(outcomes, gpus, 0.0 if known_at_once else math.inf)
    cancelled = {request_id for _, request_id in cancellations}
    mishaps = conditions.error_rate or any(fault.slot < gpus for fault in faults)
    for tracked in outcomes.requests:
        run_steps = outcomes.tally.steps_run[tracked.id]
        assert tracked.stage is not Stage.CANCELLED or tracked.id in cancelled
        if tracked.stage is Stage.DONE:
            assert set(run_steps) == set(range(tracked.submission.steps))
            if not mishaps:
                check_steps(tracked)
        if tracked.stage is Stage.FAILED:
            assert mishaps
            assert tracked.failures >= config.attempts
        if known_at_once:
            redone = len(run_steps) - len(set(run_steps))
            assert redone <= outcomes.tally.steps_lost[tracked.id]
    if not mishaps:
        counted = sum(tracked.gpu_seconds for tracked in outcomes.requests)
        assert math.isclose(outcomes.tally.busy_seconds, counted, abs_tol=1e-6)


@settings(max_examples=60, deadline=None)
@given(ARRIVALS, GPUS, CONDITIONS, st.integers(0, 1000))
def test_a_fleet_that_keeps_dying_still_finishes_the_work(wanted, gpus, conditions, seed):
    faults = random_faults(range(gpus), per_hour=600, repair_s=1.0, seed=seed)
    # Nobody gives up here, so that what is lost is really made good.
    outcomes = run(wanted, gpus, faults, [], conditions, Config(attempts=1000, grace_s=0.5))
    check_books(outcomes, gpus, math.inf if conditions.latency_s else 0.0)
    assert all(tracked.stage is Stage.DONE for tracked in outcomes.requests)


@pytest.mark.parametrize("name", ["edf", "tetriserve", "fixed:2", "rssp"])
@settings(max_examples=30, deadline=None)
@given(wanted=ARRIVALS, gpus=st.sampled_from([2, 4, 8]), faults=FAULTS, conditions=CONDITIONS)
def test_policies_cope_with_a_changing_fleet(name, wanted, gpus, faults, conditions):
    outcomes = run(wanted, gpus, faults, [], conditions, Config(attempts=1000, grace_s=0.5), resolve(name))
    check_books(outcomes, gpus, math.inf)
    assert all(tracked.stage is Stage.DONE for tracked in outcomes.requests)


@pytest.mark.parametrize("gpus", [1, 4])
def test_a_request_that_always_errs_fails_after_three_attempts(gpus):
    conditions = Conditions(error_rate=1.0)
    outcomes = run([(0.0, (512, 512), 8, None)] * 3, gpus, [], [], conditions, Config())
    for tracked in outcomes.requests:
        assert tracked.stage is Stage.FAILED
        assert tracked.failures == 3
        assert "chosen to fail" in tracked.error


@pytest.mark.parametrize("name", ["srtf", "tetriserve"])
def test_an_order_that_has_to_be_aborted_takes_no_later_one_along(name):
    # Each took the next along on some of its members, which so had to be aborted in its turn: for ever.
    wanted = [(0.1, (1024, 1024), 8, None), (0.6, (1024, 1024), 5, None)]
    leaving = [Fault(1.1, 1, repair_s=0.0, clean=True)]
    config = Config(0.1, 0.3, grace_s=0.5)
    outcomes = run(wanted, 2, leaving, [], Conditions(decision_s=0.03, switch_s=0.01), config, resolve(name))
    assert outcomes.ended_at < 10
