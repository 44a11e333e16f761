"""The paper's policy and the simple ones: what they promise, each alone and over whole runs."""

import itertools
import math
import random
from collections.abc import Iterable
from dataclasses import replace
from functools import reduce
from operator import or_

import pytest
from chaos import PATIENT, PROFILE, SIZES, check_books, check_steps
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.conditions import Conditions, Fault, random_faults
from bench.simulator import Arrival, Outcomes, Simulation
from scheduler.config import Config
from scheduler.placement import layout_of, mask_of
from scheduler.policies import names, resolve
from scheduler.policies.arrangement import arrange
from scheduler.policies.board import Board
from scheduler.policies.knapsack import Item, pack
from scheduler.policies.tetriserve import VARIANTS, Round, aligned_window
from scheduler.problem import EVERY_ROLE, ROLES, Gpu, Problem, Request, Stage
from scheduler.profile import Profile, StepTime
from scheduler.tracking import Submission

TETRISERVE = ["tetriserve", *(f"tetriserve:{variant}" for variant in VARIANTS if variant)]
BASELINES = [*TETRISERVE, "srtf", "edf-best-fit"]


def problem(seed: int, gpus: int = 8, requests: int = 12, split_roles: bool = False) -> Problem:
    """A moment in a busy cluster of one or two nodes, at random."""
    rng = random.Random(seed)
    now = rng.choice([100.0, 100.05, 100.1, 100.2, 100.25])
    outstanding = []
    for number in range(rng.randint(1, requests)):
        width, height = rng.choice(SIZES)
        stage = rng.choice([Stage.ENCODING, Stage.DENOISING, Stage.DENOISING, Stage.DECODING])
        degree = rng.choice([k for k in (1, 2, 4, 8) if k <= gpus])
        first = rng.randrange(0, gpus - degree + 1, degree)
        outstanding.append(
            Request(
                f"r{number}",
                width,
                height,
                stage,
                0 if stage is Stage.DECODING else rng.randint(1, 30),
                ready_at=now + rng.choice([-3.0, 0.0, 0.04, 0.3]),
                arrived_at=now - 3 - rng.random(),
                deadline=math.inf if rng.random() < 0.1 else now + rng.uniform(-1, 8),
                weight=rng.choice([1.0, 1.0, 2.5]),
                slots=() if stage is Stage.ENCODING else tuple(range(first, first + degree)),
                drop_late=rng.random() < 0.2,
            )
        )
    split = rng.choice([gpus, gpus // 2])
    slots = tuple(
        Gpu(
            slot,
            now + rng.choice([0.0, 0.0, 0.03, 0.4]),
            "a" if slot < split else "b",
            frozenset(rng.sample(ROLES, rng.randint(1, 3))) if split_roles else EVERY_ROLE,
        )
        for slot in range(gpus)
    )
    round_s = rng.choice([0.05, 0.25, 0.5])
    profile = PROFILE.limited(layout_of(slots).max_degree)
    return Problem(now, now + 0.1, round_s, slots, tuple(outstanding), profile, 0.1)


# The knapsack.

item = st.builds(Item, st.integers(0, 5), st.tuples(st.integers(0, 2), st.integers(-9, 9)))
groups = st.lists(
    st.lists(item, max_size=3).map(lambda items: [Item(0, (0, 0)), *items]), min_size=1, max_size=5
)


def total(items: list[Item]) -> tuple[tuple[float, float], int]:
    return (sum(i.worth[0] for i in items), sum(i.worth[1] for i in items)), sum(i.width for i in items)


@settings(max_examples=300, deadline=None)
@given(groups, st.integers(0, 9))
def test_the_knapsack_is_as_good_as_brute_force(groups, capacity):
    choice = pack(groups, capacity)
    worth, width = total([group[index] for group, index in zip(groups, choice, strict=True)])
    assert width <= capacity
    packings = (total(list(packing)) for packing in itertools.product(*groups))
    assert worth == max(worth for worth, width in packings if width <= capacity)


def test_the_knapsack_wants_a_way_out():
    with pytest.raises(ValueError, match="width 0"):
        pack([[Item(1, (1.0, 0.0))]], 8)


# The arrangement.


def denoising(name: str, side: int = 512, slots: tuple[int, ...] = (), **other) -> Request:
    fields = {"steps": 10, "ready_at": 100.0, "arrived_at": 99.0, "deadline": 110.0, **other}
    return Request(name, side, side, Stage.DENOISING, slots=slots, **fields)


def quiet(*requests: Request, gpus: int = 8, round_s: float = 0.5) -> Problem:
    slots = tuple(Gpu(slot, 100.0) for slot in range(gpus))
    return Problem(100.0, 100.1, round_s, slots, requests, PROFILE.limited(gpus))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([1, 2, 4, 8]), st.integers(0, 7)), max_size=8))
def test_what_fits_by_number_finds_a_place(wishes):
    wanted, held = [], []
    for degree, slot in wishes:
        if sum(wanted) + degree <= 8:
            wanted.append(degree)
            held.append(slot)
    requests = [denoising(f"r{i}", 1024, slots=(slot,)) for i, slot in enumerate(held)]
    board = Board(quiet(*requests))
    places = arrange(board, list(zip(board.works, wanted, strict=True)), mask_of(range(8)))
    assert [places[request.id].bit_count() for request in requests] == wanted
    assert sum(block.bit_count() for block in places.values()) == reduce(or_, places.values(), 0).bit_count()


def test_requests_stay_where_they_are_and_newcomers_make_way():
    board = Board(quiet(denoising("new"), denoising("a", slots=(0, 1)), denoising("b", slots=(4,))))
    new, a, b = board.works
    places = arrange(board, [(new, 2), (a, 2), (b, 1)], mask_of(range(8)))
    assert places["a"] == mask_of((0, 1))
    assert places["b"] == mask_of((4,))
    assert places["new"] & mask_of((0, 1, 4)) == 0


def test_a_gap_makes_a_request_narrower():
    board = Board(quiet(denoising("a")))
    places = arrange(board, [(board.works[0], 4)], mask_of((0, 2, 3, 5)))
    assert places == {"a": mask_of((2, 3))}


# Every plan.


@pytest.mark.parametrize("name", ["cp-sat", "ilp", "search", "edf", "fixed:1", "fixed:4", "rssp", *BASELINES])
@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, 2, 3, 4, 8]))
def test_a_plan_gives_only_what_may_be_given(name, seed, gpus):
    given_problem = problem(seed, gpus)
    policy = resolve(name)
    plan, again = policy(given_problem, PATIENT), policy(given_problem, PATIENT)
    assert (again.assignments, again.late) == (plan.assignments, plan.late), "not deterministic"
    board = Board(given_problem)
    requests = {request.id: request for request in given_problem.requests}
    free_at = {gpu.slot: gpu.free_at for gpu in given_problem.gpus}
    taken: set[int] = set()
    given_to = [request_id for a in plan.assignments for request_id in a.request_ids]
    assert len(set(given_to)) == len(given_to)
    for a in plan.assignments:
        members = [requests[request_id] for request_id in a.request_ids]
        request = members[0]
        assert all(member.ready_at <= given_problem.horizon for member in members)
        assert all(member.can_join(request) for member in members[1:])
        assert a.batch <= given_problem.profile.max_batch(request.width, request.height)
        assert all(free_at[slot] <= given_problem.horizon for slot in a.slots)
        assert mask_of(a.slots) in board.layout.blocks[a.degree], "not an aligned block of one node"
        assert taken.isdisjoint(a.slots)
        taken.update(a.slots)
        assert a.stage is request.stage
        assert a.degree in given_problem.degrees(request)
        ready = [member.ready_at for member in members]
        assert a.begin == max(given_problem.now, *ready, *(free_at[s] for s in a.slots))
        assert a.end == pytest.approx(a.begin + given_problem.duration(request, a.degree, a.steps, a.batch))
        if request.stage is Stage.DENOISING:
            assert 1 <= a.steps <= given_problem.steps_per_order(request, a.degree, a.batch)
            assert a.steps <= min(member.steps for member in members)
        else:
            assert a.steps == 0
        assert not any(member.drop_late and member.id in plan.late for member in members)
    assert set(plan.late) == {r.id for r in given_problem.requests if given_problem.is_late(r)}
    assert plan.again_at > given_problem.now


# The paper's rounds.


@settings(max_examples=200, deadline=None)
@given(st.floats(0, 1000), st.sampled_from([0.05, 0.25, 0.7]), st.sampled_from([1e-9, 0.03, 0.1, 2.0]))
def test_rounds_follow_one_another(now, round_s, lead):
    at = Problem(now, now + lead, round_s, (), (), PROFILE)
    window = aligned_window(at)
    begin = window.end - round_s
    assert abs(begin / round_s - round(begin / round_s)) < 1e-6
    assert now <= window.closes + 1e-9
    assert window.opens <= begin <= window.closes
    assert window.opens - now < round_s
    # Whoever wakes when the next round opens finds that it has.
    opens = window.end - window.grace
    later = aligned_window(replace(at, now=opens, horizon=opens + lead))
    assert later.opens <= opens + 1e-9
    assert later.end == pytest.approx(window.end + round_s)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6))
def test_nothing_denoises_between_rounds_nor_beyond_them(seed):
    given_problem = problem(seed)
    window = aligned_window(given_problem)
    plan = resolve("tetriserve")(given_problem, PATIENT)
    between = given_problem.now < window.opens
    requests = {request.id: request for request in given_problem.requests}
    for a in plan.assignments:
        if between:
            assert a.stage is not Stage.DENOISING
            assert a.end <= window.opens + 2 * window.grace
        elif a.stage is Stage.DENOISING:
            request = requests[a.request_ids[0]]
            step = PROFILE.step(request.width, request.height, a.degree)
            assert a.end <= window.end + window.grace + 1e-9 or step > given_problem.round_s
    if between:
        assert plan.again_at == window.opens


def test_options_are_the_cheapest_mix_in_whole_steps():
    step, fastest = (PROFILE.step(1024, 1024, k) for k in (1, 8))
    request = denoising("easy", 1024, steps=5, deadline=130.0)
    packing = Round(Board(quiet(request, round_s=2.1 * step)), VARIANTS[""])
    waiting, one = packing._options(packing.board.works[0])
    assert (waiting.degree, one.degree, one.steps) == (0, 1, 2)
    spare = 130.0 - PROFILE.decode(1024, 1024) - packing.window.end
    assert waiting.slack == pytest.approx(spare - 5 * fastest)
    assert one.slack == pytest.approx(spare - 3 * fastest)
    tight = denoising("tight", 1024, steps=10, deadline=100.0 + 10 * step * 0.8 + PROFILE.decode(1024, 1024))
    packing = Round(Board(quiet(tight)), VARIANTS[""])
    assert [option.degree for option in packing._options(packing.board.works[0])] == [0, 2, 1]


def test_who_cannot_wait_goes_first_and_the_late_take_what_is_left():
    least = 10 * PROFILE.step(1024, 1024, 8) + PROFILE.decode(1024, 1024)
    requests = (
        denoising("slack", 1024, deadline=200.0),
        denoising("tight", 1024, deadline=100.0 + least + 0.12),
        denoising("late", 1024, deadline=100.0 + least - 0.01),
    )
    plan = resolve("tetriserve:schedule")(quiet(*requests), 0.05)
    assert {a.request_ids[0]: a.degree for a in plan.assignments} == {"tight": 8}
    assert plan.late == ("late",)
    plan = resolve("tetriserve:schedule")(quiet(requests[0], requests[2]), 0.05)
    assert {a.request_ids[0]: a.degree for a in plan.assignments} == {"slack": 1, "late": 1}


@pytest.mark.parametrize(("side", "orders"), [(1024, {}), (256, {"slack": 4})])
def test_the_event_driven_variant_keeps_gpus_for_what_needs_more_of_them(side, orders):
    """Four GPUs are free, all eight will be: only steps that end by then may begin."""
    seconds = 10 * PROFILE.step(1024, 1024, 8) + PROFILE.decode(1024, 1024)
    wide = denoising("wide", 1024, deadline=100.15 + seconds + 0.01)
    assert PROFILE.step(256, 256, 1) < 0.15 < PROFILE.step(1024, 1024, 4)
    crowded = quiet(wide, denoising("slack", side, deadline=200.0))
    busy = tuple(Gpu(slot, 100.0 if slot < 4 else 100.15) for slot in range(8))
    plan = resolve("tetriserve:event")(replace(crowded, gpus=busy), 0.05)
    assert {a.request_ids[0]: a.degree for a in plan.assignments} == orders


def test_the_late_get_one_gpu_where_there_is_nothing_to_scale_up():
    late = [denoising(f"late{i}", 256, deadline=100.0) for i in range(3)]
    plan = resolve("tetriserve:placement")(quiet(*late), 0.05)
    assert sorted(a.degree for a in plan.assignments) == [1, 1, 1]


def test_scale_up_leaves_no_gpu_idle_that_would_help():
    alone = quiet(denoising("easy", 1024, deadline=200.0))
    assert [a.degree for a in resolve("tetriserve:placement")(alone, 0.05).assignments] == [1]
    assert [a.degree for a in resolve("tetriserve")(alone, 0.05).assignments] == [8]


# Whole runs.


def simulate(
    name: str,
    arrivals: list[Arrival],
    gpus: int = 8,
    profile: Profile = PROFILE,
    step_cv: float = 0.0,
    faults: Iterable[Fault] = (),
    **config: float,
) -> Outcomes:
    return Simulation(
        resolve(name),
        profile,
        gpus,
        arrivals,
        config=Config(**{"round_s": 0.25, "lead_s": 0.1, **config}),
        conditions=Conditions(switch_s=0.01, step_cv=step_cv, seed=1),
        faults=faults,
    ).run()


def crowd(seed: int, requests: int = 40, per_second: float = 2.0) -> list[Arrival]:
    rng = random.Random(seed)
    at, arrivals = 0.0, []
    for number in range(requests):
        at += rng.expovariate(per_second)
        deadline_s = None if rng.random() < 0.1 else rng.uniform(1, 6)
        submission = Submission(f"r{number}", *rng.choice(SIZES), rng.randint(1, 20), deadline_s)
        arrivals.append(Arrival(at, submission))
    return arrivals


@pytest.mark.parametrize("lead_s", [0.0, 0.1])
@pytest.mark.parametrize("name", BASELINES)
def test_every_request_ends(name, lead_s):
    for seed, gpus in enumerate([1, 3, 8]):
        outcomes = simulate(name, crowd(seed), gpus, step_cv=0.1 * seed, lead_s=lead_s)
        check_books(outcomes, gpus)
        for tracked in outcomes.requests:
            check_steps(tracked)


@pytest.mark.parametrize("name", BASELINES)
def test_every_request_ends_when_executors_die(name):
    for seed in range(3):
        faults = random_faults(range(4), per_hour=400, repair_s=2.0, seed=seed)
        outcomes = simulate(name, crowd(seed, 30), 4, faults=faults)
        assert outcomes.tally.losses
        check_books(outcomes, 4)


def test_steps_begin_with_rounds():
    round_s, lead_s = 0.5, 0.1
    outcomes = simulate("tetriserve", crowd(7), round_s=round_s, lead_s=lead_s)
    # What has just been encoded goes on at once, and others with it; so does who shared another's last step.
    encoded = {tracked.spans[0].end for tracked in outcomes.requests}
    for tracked in outcomes.requests:
        for before, span in itertools.pairwise(tracked.spans):
            if span.stage is Stage.DENOISING and span.begin not in encoded and before.batch == 1:
                phase = (span.begin + lead_s / 2) % round_s
                assert phase <= lead_s + 1e-6 or phase >= round_s - 1e-6


def test_encoding_is_followed_by_steps_in_the_same_round():
    # It comes just before a round, so that the round has to encode it.
    outcomes = simulate("tetriserve", [Arrival(0.96, Submission("r", 512, 512, 20, 10.0))], round_s=1.0)
    encoding, first, *_ = outcomes.requests[0].spans
    assert first.begin == pytest.approx(encoding.end)


@pytest.mark.parametrize("name", TETRISERVE)
def test_steps_longer_than_a_round_make_progress(name):
    steps = [StepTime("step", 512, 512, k, 1, 0.9 / k**0.5) for k in (1, 2)]
    profile = Profile([*steps, StepTime("decode", 512, 512, 1, 1, 0.4)])
    arrivals = [
        Arrival(0.1 * i, Submission(f"r{i}", 512, 512, 3, deadline_s))
        for i, deadline_s in enumerate([20.0, 0.5, None])
    ]
    outcomes = simulate(name, arrivals, 2, profile)
    for tracked in outcomes.requests:
        check_steps(tracked)
    urgent = outcomes.requests[0]
    assert not urgent.late
    assert [len(span.slots) for span in urgent.spans if span.stage is Stage.DENOISING] == [2, 2, 2]


def moves(outcomes: Outcomes) -> int:
    """How often a request went on where it did not run, apart from getting wider or narrower."""
    pairs = [pair for tracked in outcomes.requests for pair in itertools.pairwise(tracked.spans)]
    slots = [(set(before.slots), set(after.slots)) for before, after in pairs]
    return sum(not (before <= after or after <= before) for before, after in slots)


def test_placement_saves_moves():
    arrivals = crowd(3, 60)
    scattered, kept = (
        moves(simulate(name, arrivals)) for name in ("tetriserve:schedule", "tetriserve:placement")
    )
    assert kept < 0.7 * scattered


# The simple ones.


def degrees(name: str, *requests: Request, **other: int) -> dict[str, int]:
    plan = resolve(name)(quiet(*requests, **other), 0.05)
    return {a.request_ids[0]: a.degree for a in plan.assignments}


def test_srtf_runs_the_shortest_first_whatever_the_deadlines():
    long, short = denoising("long", 1024, steps=9, deadline=101.0), denoising("short", 1024, steps=8)
    assert degrees("srtf", long, short) == {"short": 8}
    assert degrees("srtf", long, short, gpus=1) == {"short": 1}


def test_best_fit_takes_the_narrowest_degree_in_time():
    seconds = {k: 10 * PROFILE.step(1024, 1024, k) + PROFILE.decode(1024, 1024) for k in (1, 2, 4, 8)}
    for degree in (1, 2, 4):
        first = denoising("a", 1024, deadline=100.0 + seconds[degree])
        # The others fill the rest, so that nothing is left to speed up.
        others = [denoising(f"b{i}", 256, deadline=300.0) for i in range(8 - degree)]
        assert degrees("edf-best-fit", first, *others)["a"] == degree


def test_best_fit_lets_the_doomed_go_first():
    doomed, fine = denoising("doomed", 1024, deadline=100.1), denoising("fine", 1024, deadline=200.0)
    assert degrees("edf-best-fit", doomed, fine) == {"doomed": 8}


def test_variants_go_by_names():
    assert "tetriserve[:VARIANT]" in names()
    with pytest.raises(ValueError, match="schedule, "):
        resolve("tetriserve:nonsense")
