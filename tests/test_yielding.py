"""Work that no deadline waits for gives way in the middle of a step."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.conditions import Conditions
from bench.simulator import Arrival, Simulation
from scheduler import messages
from scheduler.config import Config
from scheduler.orders import Give, Order, Outcome, Report, Truncate
from scheduler.policies import resolve
from scheduler.policies.board import Board
from scheduler.policies.edf import CHEAP
from scheduler.policies.lineup import Lineup
from scheduler.policies.spare import PATIENCE_S, give_hopeful
from scheduler.problem import Assignment, Gpu, Plan, Problem, Request, Running, Stage
from scheduler.profile import LAYERS, Profile, StepTime, load, save
from scheduler.rounds import Rounds
from scheduler.tracking import Submission
from scheduler.yielding import NOTICE_S, TO_LEAVE, leaving_s

STEP_S = 0.8
ENTRIES = [StepTime("step", 1024, 1024, degree, 1, STEP_S / degree) for degree in (1, 2, 4)]
PROFILE = Profile([*ENTRIES, StepTime("encode", 0, 0, 1, 1, 0.05), StepTime("layer", 1024, 1024, 2, 1, 0.01)])
"""A step has 40 layers."""


def give(core: Rounds, now: float, *assignments: Assignment, **plan):
    core.problem(now)
    return core.commit(now, Plan(assignments, **plan))


def denoising(name: str, slots: tuple[int, ...], steps: int, begin: float) -> Assignment:
    return Assignment((name,), Stage.DENOISING, slots, steps, begin, begin + steps * STEP_S / len(slots))


def core_with(deadline: float | None, late: tuple[str, ...] = ()) -> tuple[Rounds, Order]:
    """Two executors, and a request that both are at: an order of 3 steps of 0.4 s from 0 on."""
    core = Rounds(Config(round_s=2.0, lead_s=0.15), PROFILE)
    for slot in (0, 1):
        core.executor_joined(0.0, slot)
    core.submit(0.0, Submission("r", 1024, 1024, 20, deadline))
    (first,) = [
        e.order
        for e in give(core, 0.0, Assignment(("r",), Stage.ENCODING, (0, 1), 0, 0.0, 0.0), late=late)
        if isinstance(e, Give)
    ]
    for slot in (0, 1):
        core.order_done(0.0, first.id, Report(slot, held={"r": 0}))
    effects = give(core, 0.0, denoising("r", (0, 1), 3, 0.0))
    (order,) = [effect.order for effect in effects if isinstance(effect, Give)]
    return core, order


@pytest.mark.parametrize("yields", [False, True])
def test_executors_are_told_which_orders_yield(yields):
    given = Order(1, (0,), 0, Stage.DENOISING, 1, yields=yields)
    assert messages.order(given, [], []).yields is yields


@pytest.mark.parametrize(
    ("deadline", "late", "yields"), [(None, (), True), (100.0, (), False), (1.0, ("r",), True)]
)
def test_orders_of_what_has_no_deadline_to_meet_yield(deadline, late, yields):
    core, order = core_with(deadline, late)
    assert order.yields is yields
    (running,) = core.snapshot(0.3).running
    assert running.yields is yields


def test_what_is_kept_does_not_yield():
    core, _ = core_with(None)
    core.requests["r"].claim = 50.0  # it has waited for so long
    for slot in (0, 1):
        core.order_done(1.2, 2, Report(slot, held={"r": 3}, seconds=1.2))
    (effect,) = [e for e in give(core, 1.2, denoising("r", (0, 1), 1, 1.2)) if isinstance(e, Give)]
    assert effect.order.yields is False


def test_the_step_that_is_left_is_done_again():
    core, order = core_with(None)
    core.step_done(0.4, order.id)
    (running,) = core.snapshot(0.5).running
    assert running.ends == pytest.approx(0.5 + NOTICE_S + 0.4 * TO_LEAVE / 40)
    assert running.request.steps == 19, "of the two that have begun one counts"
    effects = give(core, 0.5, interrupted=("r",))
    assert effects == [Truncate(order.id, 0, "r")]
    assert core.slots[0].queue[-1].end == pytest.approx(running.ends)
    assert core.snapshot(0.51).running == ()
    for slot in (0, 1):
        core.order_done(0.53, order.id, Report(slot, Outcome.OK, {"r": 1}, 0.53))
    tracked = core.requests["r"]
    assert (tracked.next_stage, tracked.next_step, tracked.steps_done) == (Stage.DENOISING, 1, 1)
    assert tracked.gpu_seconds == pytest.approx(2 * 0.53), "what was lost has been spent, too"
    assert tracked.failures == 0


def test_a_step_that_is_about_to_end_is_not_lost():
    core, _ = core_with(None)
    (running,) = core.snapshot(0.4 - NOTICE_S).running
    assert (running.ends, running.request.steps) == (pytest.approx(0.4), 19)


def moment(late_slots: tuple[int, ...], deadline: float, size: int = 4) -> Problem:
    """Late work is on some of the GPUs for two more seconds, another request has come."""
    whole = Request("late", 1024, 1024, Stage.DENOISING, 30, 2.0, -50.0, -1.0, slots=late_slots)
    rest = replace(whole, steps=32, ready_at=0.02)
    new = Request("new", 1024, 1024, Stage.DENOISING, 4, 0.0, 0.0, deadline)
    gpus = tuple(Gpu(slot, 2.0 if slot in late_slots else 0.0) for slot in range(size))
    running = (Running(rest, late_slots, 0.02, 2.0, yields=True),)
    return Problem(0.0, 0.1, 0.8, gpus, (whole, new), PROFILE, running=running)


@pytest.mark.parametrize("policy", ["edf", "cp-sat", "ilp"])
def test_late_work_gives_way_to_who_needs_its_gpus(policy):
    plan = resolve(policy)(moment((0, 1, 2, 3), deadline=0.9), 10.0)
    assert plan.interrupted == ("late",)
    (order,) = plan.assignments
    assert (order.request_ids, order.degree, order.begin) == (("new",), 4, 0.02)


@pytest.mark.parametrize("policy", ["edf", "cp-sat", "ilp"])
@pytest.mark.parametrize(("extra", "gives_way"), [(CHEAP - 0.01, True), (CHEAP + 0.01, False)])
def test_it_gives_way_to_who_is_only_faster_with_them_where_that_is_cheap(policy, extra, gives_way):
    """Four GPUs take a share of `extra` GPU-seconds more than two."""
    steps = [StepTime("step", 1024, 1024, 1, 1, STEP_S), StepTime("step", 1024, 1024, 2, 1, STEP_S / 2)]
    steps.append(StepTime("step", 1024, 1024, 4, 1, STEP_S / 4 / (1 - extra)))
    profile = Profile([*steps, *PROFILE.entries[len(ENTRIES) :]])
    plan = resolve(policy)(replace(moment((0, 1), deadline=1.7), profile=profile), 10.0)
    (order,) = plan.assignments
    assert order.request_ids == ("new",)
    if gives_way:
        assert (plan.interrupted, order.slots) == (("late",), (0, 1, 2, 3))
    else:
        assert (plan.interrupted, order.slots) == ((), (2, 3))


@pytest.mark.parametrize("policy", ["edf", "cp-sat"])
def test_who_may_be_on_time_is_not_interrupted_so_that_another_is_faster(policy):
    """Another one, under way on two GPUs, needs all four from now on; the new one is content with two."""
    problem = moment((0, 1), deadline=1.7)
    (running,) = problem.running
    late, new = problem.requests
    other = replace(late, id="other", arrived_at=0.0, deadline=2.3, steps=5)
    under_way = replace(running, request=replace(other, steps=10, ready_at=0.02), yields=False)
    plan = resolve(policy)(replace(problem, requests=(other, new), running=(under_way,)), 10.0)
    (order,) = plan.assignments
    assert (plan.interrupted, order.request_ids, order.slots) == ((), ("new",), (2, 3))


@pytest.mark.parametrize("policy", ["edf", "cp-sat", "ilp"])
def test_who_was_left_for_nothing_before_is_not_left_so_that_another_is_faster(policy):
    problem = moment((0, 1), deadline=1.7)
    (running,) = problem.running
    assert resolve(policy)(problem, 10.0).interrupted == ("late",)
    problem = replace(problem, running=(replace(running, in_vain=True),))
    plan = resolve(policy)(problem, 10.0)
    (order,) = plan.assignments
    assert (plan.interrupted, order.slots) == ((), (2, 3))


def test_an_order_was_in_vain_until_a_step_has_been_done():
    core, order = core_with(None)
    assert core.snapshot(0.2).running[0].in_vain is False
    give(core, 0.2, interrupted=("r",))
    for slot in (0, 1):
        core.order_done(0.23, order.id, Report(slot, Outcome.OK, {"r": 0}, 0.23))
    effects = give(core, 0.3, denoising("r", (0, 1), 3, 0.3))
    (order,) = [effect.order for effect in effects if isinstance(effect, Give)]
    assert core.snapshot(0.4).running[0].in_vain is True
    core.step_done(0.7, order.id)
    assert core.snapshot(0.75).running[0].in_vain is False


def test_late_work_beside_others_that_could_be_faster_gets_on():
    """Others come every 2 s, would take 1.6 s on all GPUs, and have time enough on two."""
    arrivals = [Arrival(0.0, Submission("late", 1024, 1024, 20, 0.1))]
    arrivals += [Arrival(0.01 + 2.0 * n, Submission(f"r{n}", 1024, 1024, 8, 6.0)) for n in range(30)]
    outcomes = Simulation(resolve("edf"), PROFILE, 4, arrivals, config=Config(round_s=0.25, lead_s=0.1)).run()
    late, *others = outcomes.requests
    assert all(tracked.finished_at <= tracked.deadline for tracked in others)
    assert late.finished_at < 45
    lost = outcomes.tally.steps_lost["late"]
    assert lost <= 20, "one for each that is done, at most"


def one_left(free_at: float, deadline: float, running: tuple[Running, ...] = ()) -> Problem:
    """A request with one step of 0.4 s left on GPUs 2 and 3; the other two are free later."""
    request = Request("r", 1024, 1024, Stage.DENOISING, 1, 0.0, -1.0, deadline, slots=(2, 3))
    gpus = tuple(Gpu(slot, free_at if slot < 2 else 0.0) for slot in range(4))
    return Problem(0.0, 0.3, 0.8, gpus, (request,), PROFILE, running=running)


@pytest.mark.parametrize("policy", ["edf", "edf-best-fit"])
def test_an_order_is_not_widened_where_it_would_end_later(policy):
    (order,) = resolve(policy)(one_left(0.25, deadline=0.41), 10.0).assignments
    assert (order.slots, order.end) == ((2, 3), pytest.approx(0.4))
    (order,) = resolve(policy)(one_left(0.15, deadline=0.41), 10.0).assignments
    assert (order.slots, order.end) == ((0, 1, 2, 3), pytest.approx(0.35))


def test_an_order_begins_where_a_gpu_is_free():
    """Its own GPU is a moment late for a deadline that another one meets."""
    steps = [StepTime("step", 1024, 1024, degree, 1, STEP_S / degree**0.8) for degree in (1, 2, 4)]
    profile = Profile([*steps, *PROFILE.entries[len(ENTRIES) :]])
    request = Request("r", 1024, 1024, Stage.DENOISING, 1, 0.0, -1.0, STEP_S + 0.003, slots=(3,))
    gpus = tuple(Gpu(slot, free_at) for slot, free_at in enumerate((0.0, 0.0, 0.5, 0.007)))
    problem = Problem(0.0, 0.1, 0.8, gpus, (request,), profile, scale_up=0.0)
    (order,) = resolve("edf")(problem, 10.0).assignments
    assert (order.degree, order.begin) == (1, 0.0)
    assert order.slots != (3,)


def test_what_scale_up_adds_is_counted_from_the_degree_that_was_planned():
    """Of either doubling a fifth is extra, of both together 36 %."""
    seconds = {1: STEP_S, 2: STEP_S / 2 / 0.8, 4: STEP_S / 4 / 0.64}
    steps = [StepTime("step", 1024, 1024, degree, 1, step) for degree, step in seconds.items()]
    profile = Profile([*steps, *PROFILE.entries[len(ENTRIES) :]])
    request = Request("r", 1024, 1024, Stage.DENOISING, 4, 0.0, 0.0, 60.0, slots=(0,))
    gpus = tuple(Gpu(slot, 0.0) for slot in range(4))
    for share, degree in [(0.1, 1), (0.3, 2), (0.4, 4)]:
        problem = Problem(0.0, 0.1, 0.8, gpus, (request,), profile, scale_up=share)
        (order,) = resolve("edf")(problem, 10.0).assignments
        assert order.degree == degree


def test_an_order_whose_step_is_overdue_is_not_taken_for_idle_gpus(monkeypatch):
    """Only one of three can be on time; one of the others is under way, on GPUs that nobody else needs."""
    monkeypatch.setattr("scheduler.policies.spare.BLOCKING_S", 1.0)
    problem = moment((2, 3), deadline=1.7)
    (running,) = problem.running
    late, new = problem.requests
    other = replace(late, id="other", arrived_at=0.0, deadline=2.3, steps=5)
    third = replace(new, id="third", steps=8, deadline=1.75)
    overdue = replace(running, request=replace(other, steps=10, ready_at=0.0), ends=0.0, yields=False)
    plan = resolve("cp-sat")(replace(problem, requests=(other, new, third), running=(overdue,)), 10.0)
    (order,) = plan.assignments
    assert (plan.interrupted, order.request_ids, order.slots) == ((), ("new",), (0, 1))


@pytest.mark.parametrize("possible", [False, True])
def test_who_is_known_to_be_possible_is_not_held_back_by_the_length_of_a_step(possible):
    """Its steps take longer than GPUs are kept from arrivals for who finds no way; its deadline is near."""
    hopeful = Request("hopeful", 1024, 1024, Stage.DENOISING, 4, 0.0, 0.0, 60.0)
    steps = [StepTime("step", 1024, 1024, degree, 1, 0.8 / degree) for degree in (1, 2, 4)]
    profile = Profile([*steps, *PROFILE.entries[len(ENTRIES) :]])
    gpus = (Gpu(0, 0.0), Gpu(1, 0.0), Gpu(2, 9.0), Gpu(3, 9.0))
    lineup = Lineup(Board(Problem(0.0, 0.1, 0.8, gpus, (hopeful,), profile, slack_s=0.1)))
    give_hopeful(lineup, possible)
    assert [order.degree for order in lineup.assignments()] == ([2] if possible else [])


@pytest.mark.parametrize("policy", ["edf", "cp-sat", "ilp"])
def test_a_group_that_runs_late_work_may_have_a_member_that_takes_no_more_orders(policy):
    problem = moment((2, 3), deadline=1.7)
    plan = resolve(policy)(replace(problem, gpus=problem.gpus[:3]), 10.0)
    (order,) = plan.assignments
    assert (order.request_ids, order.slots, plan.interrupted) == (("new",), (0, 1), ())


def alone(size: int, late: int, layers: int = 40) -> Problem:
    """Idle GPUs, and late work that waits for them."""
    requests = tuple(
        Request(f"late{n}", 1024, 1024, Stage.DENOISING, 30, -1.0, n - 50.0, -1.0) for n in range(late)
    )
    layer = StepTime("layer", 1024, 1024, 1, 1, STEP_S / layers)
    gpus = tuple(Gpu(slot, 0.0) for slot in range(size))
    profile = Profile([*PROFILE.entries[:-1], layer])
    return Problem(0.0, 0.1, 0.8, gpus, requests, profile)


@pytest.mark.parametrize("policy", ["edf", "cp-sat"])
def test_late_work_leaves_a_gpu_for_who_comes(policy):
    plan = resolve(policy)(alone(size=4, late=3), 10.0)
    (order,) = plan.assignments
    assert (order.request_ids, order.slots) == (("late0",), (0, 1)), "the oldest; three are no block"
    plan = resolve(policy)(alone(size=8, late=3), 10.0)
    assert [(order.request_ids, order.degree) for order in plan.assignments] == [
        (("late0",), 4),
        (("late1",), 2),
    ]


@pytest.mark.parametrize("policy", ["edf", "cp-sat"])
@pytest.mark.parametrize("size", [1, 2])
def test_where_it_could_not_run_otherwise_it_has_all(policy, size):
    (order,) = resolve(policy)(alone(size=size, late=1), 10.0).assignments
    assert order.degree == size


def test_late_work_runs_where_it_is_gone_by_the_time_that_a_newcomer_is_encoded():
    # 0.8 s x 3 / 40 on one GPU are longer than an encoding, half of it is not.
    assert leaving_s(0.8, 40) > PROFILE.encode() > leaving_s(0.4, 40)
    (order,) = resolve("edf")(alone(size=2, late=1), 10.0).assignments
    assert order.degree == 2, "one GPU would leave the other idle, but too late"
    waiting = alone(size=2, late=1)
    (request,) = waiting.requests
    waiting = replace(waiting, requests=(replace(request, arrived_at=-PATIENCE_S - 1),))
    (order,) = resolve("edf")(waiting, 10.0).assignments
    assert order.degree == 1


def test_what_takes_longer_to_leave_than_a_lead_is_left_before_it_is_needed():
    """Another order ends in half a second, then all four GPUs are needed; in a tenth it would be too late."""
    problem = moment((0, 1), deadline=1.4)
    gpus = tuple(replace(gpu, free_at=0.5) if gpu.slot > 1 else gpu for gpu in problem.gpus)
    (running,) = problem.running
    late, new = problem.requests
    soon = replace(problem, gpus=gpus, requests=(late, replace(new, ready_at=0.5)))
    assert resolve("edf")(soon, 10.0).interrupted == ()
    slow = replace(running, ends=0.4, request=replace(running.request, ready_at=0.4))
    assert resolve("edf")(replace(soon, running=(slow,)), 10.0).interrupted == ("late",)


def test_a_profile_tells_how_many_layers_there_are(tmp_path):
    assert Profile(ENTRIES).layers == LAYERS
    assert PROFILE.layers == pytest.approx(40)
    assert PROFILE.scaled({2: 3.0}).layers == pytest.approx(40)
    assert PROFILE.limited(1).layers in (LAYERS, pytest.approx(40))
    save(PROFILE, tmp_path / "profile.csv")
    assert load(tmp_path / "profile.csv").layers == pytest.approx(40)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.0, 10.0), st.floats(0.3, 6.0), st.integers(1, 6)), min_size=1, max_size=8),
    st.floats(0.0, 0.01),
    st.sampled_from(["edf", "cp-sat"]),
)
def test_whatever_is_left_every_step_is_done_once(drawn, latency_s, policy):
    arrivals = [
        Arrival(at, Submission(f"r{n}", 1024, 1024, steps, deadline_s))
        for n, (at, deadline_s, steps) in enumerate(drawn)
    ]
    arrivals += [Arrival(0.0, Submission(f"free{n}", 1024, 1024, 8)) for n in range(2)]
    conditions = Conditions(latency_s=latency_s)
    outcomes = Simulation(resolve(policy), PROFILE, 4, arrivals, conditions=conditions).run()
    assert outcomes.rejected == 0
    for tracked in outcomes.requests:
        assert tracked.stage is Stage.DONE
        assert outcomes.tally.steps_run[tracked.id] == list(range(tracked.submission.steps))


def test_a_newcomer_is_on_time_who_could_not_have_waited_for_a_step():
    """Best-effort work has all GPUs in steps of 0.2 s; who comes has 0.03 s to lose."""
    newcomer = Submission("new", 1024, 1024, 5, 0.05 + 5 * 0.2 + 0.03)
    for at in (3.1, 3.15, 3.2, 3.25):
        arrivals = [Arrival(0.0, Submission("free", 1024, 1024, 40)), Arrival(at, newcomer)]
        config = Config(round_s=0.25, lead_s=0.1)
        outcomes = Simulation(resolve("cp-sat"), PROFILE, 4, arrivals, config=config).run()
        new, free = (next(t for t in outcomes.requests if t.id == name) for name in ("new", "free"))
        assert new.finished_at <= new.deadline
        assert free.stage is Stage.DONE
