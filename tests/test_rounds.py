"""The core under random workloads and a random policy: every request ends, every step runs once."""

import math

from chaos import PROFILE, SIZES, chaotic, check_books, check_steps
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.conditions import Conditions
from bench.simulator import Arrival, Simulation
from scheduler.config import Config
from scheduler.demand import Demand
from scheduler.policies import resolve
from scheduler.profile import Profile, StepTime
from scheduler.tracking import Submission

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
    check_books(outcomes, gpus)
    for tracked in outcomes.requests:
        check_steps(tracked)
    assert math.isclose(
        outcomes.tally.busy_seconds, sum(tracked.gpu_seconds for tracked in outcomes.requests), abs_tol=1e-6
    )


ALONE = Profile([StepTime("step", 512, 512, 1, 1, 0.2)])


def test_one_tight_deadline_long_ago_keeps_nobody_from_an_idle_gpu():
    tight = Arrival(0.0, Submission("tight", 512, 512, 10, 2.11))
    patient = Arrival(30.0, Submission("patient", 512, 512, 10))
    outcomes = Simulation(resolve("edf"), ALONE, 1, [tight, patient]).run()
    assert outcomes.requests[0].late is False
    assert outcomes.requests[1].finished_at < 30 + 3


def test_the_more_often_somebody_comes_who_cannot_wait_the_shorter_others_may_run():
    slacks = []
    for tight in (0, 1, 10, 50):
        demand = Demand()
        for number in range(100):
            deadline = 2.01 if number < tight else 5.0
            demand.note(float(number), Submission(f"r{number}", 512, 512, 10, deadline), 10)
        slacks.append(demand.slack(100.0, ALONE))
    assert slacks[0] == 3.0
    assert slacks == sorted(slacks, reverse=True)
    assert 0.01 < slacks[-1] < 0.05
