"""Executors with roles: every policy keeps to them, and the core's requests end, or wait for the role."""

import itertools
import random

import pytest
from chaos import PATIENT, PROFILE, chaotic, check_books, check_steps
from hypothesis import given, settings
from hypothesis import strategies as st
from test_baselines import crowd, problem

from bench.conditions import Conditions, Fault
from bench.simulator import Arrival, Simulation
from scheduler.config import Config
from scheduler.orders import Give, Outcome, Part, Report
from scheduler.placement import Layout
from scheduler.policies import resolve
from scheduler.policies.edf import plan as edf
from scheduler.problem import EVERY_ROLE, ROLES, Policy, Stage
from scheduler.rounds import Rounds
from scheduler.tracking import Submission

ENCODING, DENOISING, DECODING = ROLES
EVERYWHERE, NO_TEXT = EVERY_ROLE, EVERY_ROLE - {ENCODING}
POLICIES = [
    "cp-sat", "ilp", "edf", "fixed:1", "fixed:2", "rssp", "tetriserve", "tetriserve:schedule",
    "tetriserve:event", "srtf", "edf-best-fit",
]  # fmt: skip
FLEETS = {
    "an encoder, a decoder": {0: {ENCODING}, 1: {DECODING}, **{slot: {DENOISING} for slot in range(2, 8)}},
    "one for both ends": {7: {ENCODING, DECODING}, **{slot: {DENOISING} for slot in range(7)}},
    "one encodes, all decode": {3: EVERYWHERE, **dict.fromkeys((0, 1, 2, 4, 5, 6, 7), NO_TEXT)},
    "three": {0: {ENCODING}, 1: {DENOISING}, 2: {DECODING, ENCODING}},
}


def fleet(name: str) -> dict[int, frozenset[Stage]]:
    return {slot: frozenset(roles) for slot, roles in FLEETS[name].items()}


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, 2, 3, 8]))
def test_no_policy_gives_a_stage_to_who_cannot_run_it(name, seed, gpus):
    moment = problem(seed, gpus, split_roles=True)
    roles = {gpu.slot: gpu.roles for gpu in moment.gpus}
    taken: set[int] = set()
    given_to: set[str] = set()
    for a in resolve(name)(moment, PATIENT).assignments:
        assert all(a.stage in roles[slot] for slot in a.slots)
        assert taken.isdisjoint(a.slots)
        assert a.request_ids[0] not in given_to
        taken.update(a.slots)
        given_to.add(a.request_ids[0])


@given(st.integers(0, 10**6), st.sampled_from([2, 3, 8]))
@settings(max_examples=100, deadline=None)
def test_blocks_wider_than_one_can_denoise(seed, gpus):
    rng = random.Random(seed)
    lone = {slot for slot in range(gpus) if rng.random() < 0.3}
    layout = Layout(((slot, "") for slot in range(gpus)), lone)
    for degree, blocks in layout.blocks.items():
        assert degree == 1 or all(lone.isdisjoint(layout.members[block]) for block in blocks)
    assert len(layout.blocks[1]) == gpus


def run(policy: Policy, name: str, arrivals: list[Arrival], faults: tuple[Fault, ...] = ()):
    roles = fleet(name)
    return Simulation(
        policy,
        PROFILE,
        len(roles),
        arrivals,
        config=Config(round_s=0.25, lead_s=0.1),
        conditions=Conditions(switch_s=0.01, step_cv=0.1, seed=1, budget_s=PATIENT, checkpoint_s=0.05),
        faults=faults,
        roles=roles,
    ).run()


@pytest.mark.parametrize("fleet_name", FLEETS)
@pytest.mark.parametrize("name", POLICIES)
def test_every_request_ends_in_a_split_fleet(name, fleet_name):
    """The virtual executors raise where an order is not for their role."""
    outcomes = run(resolve(name), fleet_name, crowd(5, 25))
    check_books(outcomes, len(FLEETS[fleet_name]))
    for tracked in outcomes.requests:
        check_steps(tracked)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([*FLEETS]))
def test_every_request_ends_whatever_the_policy_and_the_faults(seed, fleet_name):
    """Who denoises and cannot encode goes on from a checkpoint only by way of an encoder."""
    rng = random.Random(seed)
    faults = tuple(
        Fault(at=rng.uniform(0.2, 8), slot=rng.randrange(len(FLEETS[fleet_name])), repair_s=1.0)
        for _ in range(3)
    )
    outcomes = run(chaotic(seed), fleet_name, crowd(seed, 10), tuple(sorted(faults, key=lambda f: f.at)))
    check_books(outcomes, len(FLEETS[fleet_name]), slip=5.0)


def test_a_checkpoint_is_gone_on_from_by_way_of_an_encoder():
    rounds = Rounds(Config(), PROFILE)
    rounds.submit(0.0, Submission("r", 256, 256, 8, 60.0), checkpoint=4)
    rounds.executor_joined(0.0, 0, roles=frozenset({DENOISING, DECODING}))
    assert rounds.lacking == (ENCODING,)
    assert rounds.commit(0.0, edf(rounds.problem(0.0), 0.05)) == [], "nobody can make the condition"
    rounds.executor_joined(0.0, 1, roles=frozenset({ENCODING}))
    assert rounds.lacking == ()
    effects = rounds.commit(0.0, edf(rounds.problem(0.0), 0.05))
    order = next(effect.order for effect in effects if isinstance(effect, Give))
    assert (order.stage, order.slots) == (ENCODING, (1,))
    assert order.parts == (Part("r", 4, (), from_checkpoint=True),)
    rounds.order_done(0.1, order.id, Report(1, Outcome.OK, {"r": 4}, seconds=0.1))
    effects = rounds.commit(0.1, edf(rounds.problem(0.1), 0.05))
    order = next(effect.order for effect in effects if isinstance(effect, Give))
    assert (order.stage, order.slots) == (DENOISING, (0,))
    assert order.parts == (Part("r", 4, (1,)),)


@pytest.mark.parametrize("missing", ROLES)
@pytest.mark.parametrize("name", POLICIES)
def test_what_nobody_can_run_waits_and_nothing_else_is_planned_for_it(name, missing):
    moment = problem(11, 4, split_roles=True)
    for seed in itertools.count(11):
        moment = problem(seed, 4, split_roles=True)
        if all(missing not in gpu.roles for gpu in moment.gpus):
            break
    plan = resolve(name)(moment, PATIENT)
    assert all(a.stage is not missing for a in plan.assignments)
