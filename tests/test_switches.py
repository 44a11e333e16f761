"""What a change of group costs: plans know it, and so change less often."""

import random

import pytest
from chaos import PATIENT, PROFILE, SIZES, check_books, check_steps
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.conditions import Conditions
from bench.simulator import Arrival, Outcomes, Simulation
from scheduler.config import Config
from scheduler.policies import resolve
from scheduler.policies.board import Board
from scheduler.policies.lineup import Aim, Lineup
from scheduler.policies.mix import Ladder
from scheduler.policies.path import cheapest_path
from scheduler.problem import Gpu, Plan, Problem, Request, Stage
from scheduler.profile import Profile, StepTime, load, save
from scheduler.tracking import Submission

POLICIES = ["edf", "cp-sat", "tetriserve", "srtf", "edf-best-fit"]


def test_a_profile_has_what_a_change_of_group_costs(tmp_path):
    profile = PROFILE.switching(0.02)
    assert PROFILE.switch == 0
    assert PROFILE.switching(0.0) is PROFILE
    save(profile, tmp_path / "p.csv")
    for same in (profile, load(tmp_path / "p.csv"), profile.limited(2), profile.scaled({}, others=3.0)):
        assert same.switch == 0.02
    assert Profile([*profile.entries, StepTime("switch", 0, 0, 1, 1, 0.03)]).switch == 0.03


def test_a_mix_pays_for_its_change_of_degree():
    step = {1: 4.0, 2: 2.2, 4: 1.3}
    free, costly = Ladder(step), Ladder(step, 1.0)
    before, after = free.cheapest(10, 20), costly.cheapest(10, 20)
    assert (before.wide, before.narrow) == (after.wide, after.narrow) == (4, 2)
    assert after.wide_steps > before.wide_steps
    assert after.seconds == pytest.approx(after.wide_steps * 1.3 + after.narrow_steps * 2.2 + 1.0)
    # One GPU needs no group.
    assert free.cheapest(10, 30).narrow == 1
    assert free.cheapest(10, 30) == costly.cheapest(10, 30)
    # Where the change costs more than there is, one degree does it all.
    assert Ladder({2: 2.2, 4: 1.3}, 10.0).cheapest(10, 20)[:4] == (4, 10, 4, 0)


def test_a_path_pays_for_going_on_wide():
    step = {1: 4.0, 4: 1.3}
    free = cheapest_path(Ladder(step), 10, 30.0, [(1, 0.0), (4, 12.0)])
    costly = cheapest_path(Ladder(step, 1.0), 10, 30.0, [(1, 0.0), (4, 13.0)])
    assert (free.head, free.head_steps, free.switch) == (1, 3, 12.0)
    assert (costly.head, costly.head_steps, costly.switch) == (1, 3, 13.0)
    # Where it holds the wide block it stays rather than wait for a narrower one.
    path = cheapest_path(Ladder({1: 4.0, 2: 2.2, 4: 1.3}, 5.0), 10, 26.0, [(1, 0.0), (2, 5.0), (4, 0.0)])
    assert path.mix.wide == 4


def test_an_order_on_other_gpus_ends_later():
    profile = PROFILE.switching(0.1)
    gpus = tuple(Gpu(slot, 0.0) for slot in range(2))
    ends = {}
    for slots in ((0, 1), (0,), ()):
        request = Request("r", 1024, 1024, Stage.DENOISING, 1, 0.0, 0.0, 10.0, slots=slots)
        lineup = Lineup(Board(Problem(0.0, 1e-6, 0.25, gpus, (request,), profile.limited(2))))
        assert lineup.place(lineup.board.works[0], Aim(10.0, narrowest=2))
        ((ends[slots],),) = ([a.end for a in lineup.assignments()],)
    assert ends[0, 1] == pytest.approx(PROFILE.step(1024, 1024, 2))
    assert ends[0,] == ends[()] == pytest.approx(ends[0, 1] + 0.1)


def run(policy, arrivals, switch_s: float, knows: bool = True, gpus: int = 8) -> Outcomes:
    conditions = Conditions(switch_s=switch_s, knows_switches=knows, budget_s=PATIENT)
    config = Config(lead_s=0.05, margin_s=0.05)
    outcomes = Simulation(policy, PROFILE, gpus, arrivals, config=config, conditions=conditions).run()
    check_books(outcomes, gpus)
    return outcomes


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["edf", "cp-sat"]), st.floats(0.3, 2.5), st.sampled_from(SIZES), st.floats(0, 0.1))
def test_who_is_alone_takes_as_long_as_planned(policy, slack, size, switch_s):
    plans: list[Plan] = []

    def spy(problem: Problem, budget_s: float) -> Plan:
        plans.append(resolve(policy)(problem, budget_s))
        return plans[-1]

    wait = slack * (PROFILE.least_seconds(*size, 20) + 3 * switch_s)
    outcomes = run(spy, [Arrival(0.0, Submission("r", *size, 20, wait))], switch_s)
    planned = [a.end - a.begin for plan in plans for a in plan.assignments]
    (tracked,) = outcomes.requests
    assert [span.end - span.begin for span in tracked.spans] == pytest.approx(planned)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.floats(0, 3), st.sampled_from(SIZES), st.integers(1, 12), st.none() | st.floats(0.1, 10)
        ),
        min_size=1,
        max_size=12,
    ),
    st.sampled_from(POLICIES),
    st.sampled_from([1, 4, 8]),
    st.floats(0, 0.5),
)
def test_every_request_ends_whatever_a_change_costs(drawn, policy, gpus, switch_s):
    arrivals = [
        Arrival(at, Submission(f"r{i}", *pixels, steps, deadline))
        for i, (at, pixels, steps, deadline) in enumerate(drawn)
    ]
    outcomes = run(resolve(policy), arrivals, switch_s, gpus=gpus)
    assert outcomes.rejected == 0
    for tracked in outcomes.requests:
        assert tracked.stage is Stage.DONE
        check_steps(tracked)


def crowd(seed: int) -> list[Arrival]:
    rng = random.Random(seed)
    arrivals, at = [], 0.0
    while (at := at + rng.expovariate(2.0)) < 30:
        size = rng.choice(SIZES)
        wait = 2.5 * PROFILE.least_seconds(*size, 12)
        arrivals.append(Arrival(at, Submission(f"r{len(arrivals)}", *size, 12, wait)))
    return arrivals


def test_who_knows_what_changes_cost_makes_fewer_of_them_and_has_more_on_time():
    figures = {}
    for knows in (True, False):
        runs = [run(resolve("edf"), crowd(seed), 0.1, knows) for seed in range(2)]
        on_time = sum(t.late is False for outcomes in runs for t in outcomes.requests)
        figures[knows] = on_time, sum(outcomes.tally.switches for outcomes in runs)
    assert figures[True][0] > figures[False][0]
    assert figures[True][1] < 0.9 * figures[False][1]
