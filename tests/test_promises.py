"""A promised deadline is never broken by what comes later, whatever the policy; nobody waits for ever."""

import itertools
import random
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from chaos import PATIENT, PROFILE, SIZES, chaotic, check_books
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bench.conditions import Conditions
from bench.simulator import Arrival, Outcomes, Simulation
from scheduler import pledges, promises
from scheduler.admission import Admission, judge
from scheduler.config import Config
from scheduler.policies import resolve
from scheduler.policies.by_node import by_node
from scheduler.problem import Stage
from scheduler.profile import Profile
from scheduler.promises import Kept, Witness
from scheduler.rounds import Rounds
from scheduler.tracking import Submission
from tetriserve.step_cache import computed

PROMISING = ["edf", "cp-sat", "ilp"]


def crowd(seed: int, gpus: int) -> list[Arrival]:
    """Requests at up to four times what the GPUs can do, their deadlines from hopeless to easy."""
    rng = random.Random(seed)
    load, at = rng.choice([0.5, 1, 2, 4]), 0.0
    arrivals = []
    for number in range(rng.randint(2, 14)):
        at += rng.expovariate(load * gpus / 2)
        deadline = None if rng.random() < 0.15 else rng.uniform(0.1, 1.0) * rng.choice([2, 5])
        submission = Submission(f"r{number}", *rng.choice(SIZES), rng.randint(1, 12), deadline)
        arrivals.append(Arrival(at, submission))
    return arrivals


def run(
    policy: str,
    seed: int,
    node_size: int | None = None,
    profile: Profile = PROFILE,
    every: int = 1,
    **conditions: Any,
) -> Outcomes:
    rng = random.Random(f"machine {seed}")
    gpus = rng.choice([1, 2, 3, 4, 8]) if node_size is None else 4 * node_size
    config = Config(rng.choice([0.1, 0.25]), rng.choice([0.0, 0.05]), margin_s=conditions.pop("margin", 0.0))
    plan = by_node(chaotic(seed)) if policy == "chaotic" else resolve(policy)
    simulation = Simulation(
        plan,
        profile,
        gpus,
        crowd(seed, gpus),
        config=config,
        conditions=Conditions(seed=seed, budget_s=PATIENT, **conditions),
        computed=partial(computed, every=every),
        node_size=node_size,
        admission=Admission.PROMISE,
    )
    outcomes = simulation.run()
    check_books(outcomes, gpus)
    return outcomes


def broken(outcomes: Outcomes) -> list[str]:
    """Promised requests that were late."""
    return [t.id for t in outcomes.requests if t.promised and t.late is not False]


@pytest.mark.parametrize("policy", ["edf", "cp-sat", "tetriserve", "srtf", "fixed:1", "chaotic"])
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_no_later_arrival_breaks_a_promise(policy, seed):
    assert broken(run(policy, seed)) == []


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["edf", "chaotic"]))
@example(192, "edf")  # an encoding moved to the very moment at which its steps began
@example(254, "chaotic")
def test_nor_where_encoding_takes_no_time(seed, policy):
    unencoded = Profile(entry for entry in PROFILE.entries if entry.kind != "encode")
    assert broken(run(policy, seed, profile=unencoded)) == []


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["edf", "chaotic", "tetriserve"]), st.integers(2, 4))
@example(113, "edf", 3)  # an order was taken to be nearer to its end for steps that took no time
@example(0, "chaotic", 4)  # a batch computed fewer steps of somebody than planned
@example(312, "chaotic", 4)  # one took longer, for its requests passed over different steps
def test_nor_where_some_steps_take_no_time(seed, policy, every):
    assert broken(run(policy, seed, every=every)) == []


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_no_later_arrival_breaks_a_promise_with_cbc(seed):
    assert broken(run("ilp", seed)) == []


@pytest.mark.long
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("policy", [*PROMISING, "chaotic"])
def test_thousands_of_runs_break_no_promise(policy):
    promised = 0
    for seed in range(250 if policy == "ilp" else 2000):
        outcomes = run(policy, seed)
        assert broken(outcomes) == [], f"seed {seed}"
        promised += sum(tracked.promised for tracked in outcomes.requests)
    assert promised > 1000


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, 2, 4]))
def test_promises_hold_on_several_nodes(seed, node_size):
    assert broken(run("edf", seed, node_size)) == []


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["edf", "chaotic"]), st.sampled_from([(1.0, 2.0), (0.5, 3.0)]))
def test_promises_hold_on_unequal_nodes(seed, policy, paces):
    assert broken(run(policy, seed, 2, node_paces=paces)) == []


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_noise_and_slow_decisions_stay_within_the_margin(seed):
    assert broken(run("edf", seed, margin=0.3, step_cv=0.01, decision_s=0.005)) == []


def test_without_the_watch_promises_break(monkeypatch):
    """What the tests above would see."""
    monkeypatch.setattr(pledges, "keep", lambda moment, assignments: Kept(tuple(assignments), moment.witness))
    assert sum(len(broken(run("chaotic", seed))) for seed in range(20)) > 0


def desk(gpus: int) -> Rounds:
    core = Rounds(Config(), PROFILE.limited(gpus))
    for slot in range(gpus):
        core.executor_joined(0.0, slot)
    return core


def test_a_deadline_is_refused_with_the_earliest_that_would_not_be():
    core = desk(1)
    step = PROFILE.step(512, 512, 1)
    first = Submission("first", 512, 512, 10, 12 * step)
    offer = core.offer(0.0, first)
    assert offer.witness is not None
    core.submit(0.0, first, offer=offer)
    assert core.requests["first"].promised
    second = replace(first, id="second")
    refusal = judge(core, 0.0, second, Admission.PROMISE)
    assert not refusal.accepted
    assert 20 * step < refusal.earliest_s < 25 * step
    assert judge(core, 0.0, second, Admission.PROMISE, unpromised=True).accepted
    patient = replace(second, deadline_s=refusal.earliest_s + 0.001)
    assert judge(core, 0.0, patient, Admission.PROMISE).offer is not None
    # Looking has changed nothing.
    assert judge(core, 0.0, second, Admission.PROMISE) == refusal


def promise_all(core: Rounds, wanted: list[tuple[tuple[int, int], int, float]]) -> list[Witness]:
    """Ask for one promise after the other; the witnesses of those that were made."""
    found = []
    for number, (size, steps, deadline_s) in enumerate(wanted):
        submission = Submission(f"r{number}", *size, steps, deadline_s)
        offer = core.offer(0.0, submission)
        if offer.witness is not None:
            core.submit(0.0, submission, offer=offer)
            found.append(offer.witness)
    return found


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(SIZES), st.integers(1, 12), st.floats(0.05, 3.0)), min_size=2, max_size=8
    ),
    st.sampled_from([1, 2, 4, 8]),
)
def test_a_witness_can_be_run_as_it_is(wanted, gpus):
    for witness in promise_all(desk(gpus), wanted):
        for booking, other in itertools.combinations(witness, 2):
            if booking.request_id == other.request_id or not set(booking.slots).isdisjoint(other.slots):
                assert booking.end <= other.begin + 1e-9 or other.end <= booking.begin + 1e-9
        for number, (size, steps, deadline_s) in enumerate(wanted):
            mine = sorted(
                (b for b in witness if b.request_id == f"r{number}"), key=lambda b: (b.begin, b.end)
            )
            if mine:
                kinds = [kind for kind, _ in itertools.groupby(b.stage for b in mine)]
                assert kinds == [Stage.ENCODING, Stage.DENOISING, Stage.DECODING]
                assert sum(b.steps for b in mine) == steps
                assert mine[-1].end <= deadline_s
                for b in mine[1:-1]:
                    step = PROFILE.step(*size, len(b.slots))
                    assert b.end - b.begin >= b.steps * step - 1e-9


def test_what_is_promised_may_change_its_degree_for_another(monkeypatch):
    """On two GPUs beside the other one, then on all four; there is no time for either alone."""
    profile = PROFILE.limited(4)
    spare = 4 * (profile.step(512, 512, 2) - profile.step(512, 512, 4))
    wide = (512, 512), 12, profile.least_seconds(512, 512, 12, 1) + spare
    quick = (256, 256), 4, 1.2 * profile.least_seconds(256, 256, 4, 1)
    assert len(promise_all(desk(4), [wide, quick])) == 2
    monkeypatch.setattr(promises, "_lined_up", lambda *_: None)
    assert len(promise_all(desk(4), [wide, quick])) == 1


def test_reject_late_lets_in_what_the_line_up_has_on_time():
    core = desk(1)
    step = PROFILE.step(512, 512, 1)
    first = Submission("first", 512, 512, 10, 12 * step)
    assert judge(core, 0.0, first, Admission.REJECT_LATE).accepted
    core.submit(0.0, first)
    core.problem(0.0)
    second = replace(first, id="second")
    refusal = judge(core, 0.0, second, Admission.REJECT_LATE)
    assert not refusal.accepted
    patient = replace(second, deadline_s=refusal.earliest_s * 1.02)
    assert judge(core, 0.0, patient, Admission.REJECT_LATE).accepted
    assert judge(core, 0.0, replace(second, deadline_s=None), Admission.REJECT_LATE).accepted
    assert judge(core, 0.0, second, Admission.ACCEPT).accepted


def overload(age_bound: float, policy: str = "edf") -> Outcomes:
    """Twice what a GPU can do, all of it with deadlines that can just be met, for half a minute."""
    seconds = PROFILE.encode() + 10 * PROFILE.step(512, 512, 1) + PROFILE.decode(512, 512)
    arrivals = [
        Arrival(0.0, Submission("patient", 512, 512, 10)),
        Arrival(0.0, Submission("late", 1024, 1024, 5, 0.01)),
        *(
            Arrival(n * seconds / 2, Submission(f"r{n}", 512, 512, 10, 2.5 * seconds))
            for n in range(round(60 / seconds))
        ),
    ]
    config = Config(age_bound_s=age_bound, lead_s=0.05)
    return Simulation(resolve(policy), PROFILE, 1, arrivals, config=config).run()


@pytest.mark.parametrize("policy", ["edf", "cp-sat", "srtf"])
def test_nobody_waits_for_ever(policy):
    waited = {t.id: t.finished_at for t in overload(5.0, policy).requests}
    ending = max(waited.values())
    assert waited["patient"] < 12
    assert waited["late"] < 18
    assert ending > 30
    if policy == "edf":
        starved = {t.id: t.finished_at for t in overload(1e9).requests}
        assert starved["patient"] > 12 or starved["late"] > 18


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["edf", "chaotic"]))
@example(56, "chaotic")  # somebody aged while an order of theirs was taken back
@example(318, "chaotic")
def test_promises_hold_beside_claims_of_the_aged(seed, policy):
    gpus = random.Random(seed).choice([1, 2, 4])
    plan = chaotic(seed) if policy == "chaotic" else resolve(policy)
    outcomes = Simulation(
        plan,
        PROFILE,
        gpus,
        crowd(seed, gpus),
        config=Config(age_bound_s=0.5, lead_s=0.05),
        admission=Admission.PROMISE,
    ).run()
    check_books(outcomes, gpus)
    assert broken(outcomes) == []
    assert all(t.stage is Stage.DONE for t in outcomes.requests)
