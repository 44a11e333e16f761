"""Orders under way can be made to end at their next step, for who has no time to wait for their end."""

from dataclasses import replace

import pytest

from bench.conditions import Conditions
from bench.runs import SERVER_CONFIG, profile
from bench.simulator import Arrival, Simulation
from bench.workloads import Workload, mix
from scheduler.config import Config
from scheduler.orders import Give, Order, Outcome, Report, Truncate
from scheduler.policies import resolve
from scheduler.problem import Assignment, Gpu, Plan, Problem, Request, Running, Stage
from scheduler.profile import Profile, StepTime
from scheduler.rounds import Rounds
from scheduler.tracking import Submission

PROFILE = Profile(
    [
        StepTime("step", side, side, degree, 1, step / degree)
        for side, step in ((512, 0.1), (1024, 0.4))
        for degree in (1, 2, 4)
    ]
)


def give(core: Rounds, now: float, *assignments: Assignment, interrupted: tuple[str, ...] = ()):
    core.problem(now)
    return core.commit(now, Plan(assignments, interrupted=interrupted))


def orders(effects) -> list[Order]:
    return [effect.order for effect in effects if isinstance(effect, Give)]


def denoising(name: str, slots: tuple[int, ...], steps: int, begin: float, step: float = 0.1) -> Assignment:
    return Assignment((name,), Stage.DENOISING, slots, steps, begin, begin + steps * step)


@pytest.fixture
def core() -> Rounds:
    """Two executors, and a request that both are at: 8 steps of 0.1 s from 0 on, of 20."""
    core = Rounds(Config(round_s=1.0, lead_s=0.15), PROFILE)
    for slot in (0, 1):
        core.executor_joined(0.0, slot)
    core.submit(0.0, Submission("long", 512, 512, 20, 100.0))
    (first,) = orders(give(core, 0.0, Assignment(("long",), Stage.ENCODING, (0, 1), 0, 0.0, 0.0)))
    for slot in (0, 1):
        core.order_done(0.0, first.id, Report(slot, held={"long": 0}))
    give(core, 0.0, denoising("long", (0, 1), 8, 0.0))
    return core


def test_an_order_under_way_says_where_it_could_end(core):
    core.step_done(0.1, 2)
    (running,) = core.snapshot(0.13).running
    assert (running.slots, running.ends) == ((0, 1), pytest.approx(0.2))
    assert running.until == pytest.approx(0.8)
    assert running.request.steps == 18, "two of twenty are done by then"
    # Too near to be told: it is the one after.
    assert core.snapshot(0.199).running[0].ends == pytest.approx(0.3)


def test_what_is_interrupted_ends_at_its_step_and_goes_on_from_there(core):
    core.step_done(0.1, 2)
    core.submit(0.12, Submission("urgent", 512, 512, 4, 1.0))
    effects = give(
        core,
        0.12,
        Assignment(("urgent",), Stage.ENCODING, (0,), 0, 0.2, 0.2),
        interrupted=("long",),
    )
    assert effects[0] == Truncate(2, 0, "long"), "before the order that goes behind it"
    assert [order.request_ids for order in orders(effects)] == [("urgent",)]
    assert core.slots[1].queue[-1].end == pytest.approx(0.2)
    assert core.snapshot(0.12).running == ()
    # Until its members have reported it can be given no order, but plans know what is left of it and when.
    seen = core.snapshot(0.12)
    (long,) = (request for request in seen.requests if request.id == "long")
    assert (long.ending, long.steps, long.ready_at) == (True, 18, pytest.approx(0.2))
    assert long.ready_at < seen.horizon
    assert not seen.startable(long)
    assert all("long" not in order.request_ids for order in resolve("edf")(seen, 1.0).assignments)
    for slot in (0, 1):
        core.order_done(0.2, 2, Report(slot, Outcome.OK, {"long": 2}, 0.2))
    long = core.requests["long"]
    assert (long.next_stage, long.next_step, long.steps_done) == (Stage.DENOISING, 2, 2)
    assert long.failures == 0
    (seen,) = (request for request in core.snapshot(0.2).requests if request.id == "long")
    assert (seen.ending, seen.steps) == (False, 18)


def test_what_is_queued_behind_is_taken_back_with_it(core):
    core.step_done(0.7, 2)
    give(core, 0.7, denoising("long", (0, 1), 8, 0.8))
    # Interrupted in its last step, the order is not shorter; the one behind it does not begin.
    (running,) = core.snapshot(0.71).running
    assert running.until > 1.5
    assert running.request.steps == 20 - 2
    effects = give(core, 0.71, denoising("long", (0,), 1, 0.8), interrupted=("long",))
    assert [effect.order_id for effect in effects if isinstance(effect, Truncate)] == [2, 3]
    assert orders(effects) == [], "it can be ordered again once it is known where it has ended"
    assert core.slots[0].queue[-1].end == pytest.approx(core.slots[0].queue[0].end)


def test_what_is_left_is_counted_from_the_last_step_done_while_orders_are_taken_back(core):
    core.step_done(0.7, 2)
    give(core, 0.7, denoising("long", (0, 1), 8, 0.8))
    give(core, 0.71, interrupted=("long",))
    assert left_of(core, 0.72) == (True, 18)
    for slot in (0, 1):
        core.order_done(0.8, 2, Report(slot, Outcome.OK, {"long": 2}, 0.8))
    assert left_of(core, 0.81) == (True, 18), "the one behind it has yet to be reported"
    for slot in (0, 1):
        core.order_done(0.82, 3, Report(slot, Outcome.RETURNED))
    assert left_of(core, 0.83) == (False, 18)


def test_what_is_interrupted_as_it_ends_has_done_no_more_than_all_of_its_steps(core):
    for step in range(1, 8):
        core.step_done(step / 10, 2)
    give(core, 0.7, denoising("long", (0, 1), 8, 0.8))
    # The plan was made in time, but is committed when the last step is all but over.
    give(core, 0.799, interrupted=("long",))
    assert left_of(core, 0.7995) == (True, 20 - 8)


def left_of(core: Rounds, now: float) -> tuple[bool, int]:
    (seen,) = (request for request in core.snapshot(now).requests if request.id == "long")
    return seen.ending, seen.steps


@pytest.mark.parametrize("reported", [(), (0,)])
def test_nobody_is_late_for_a_step_too_many(core, reported):
    """The word came too late: its members do one more step, which counts."""
    core.config = replace(core.config, drop_late=True)
    core.requests["long"].deadline = 1.12
    give(core, 0.05, interrupted=("long",))
    core.step_done(0.1, 2)
    if reported:
        core.step_done(0.2, 2)
    for slot in reported:
        core.order_done(0.2, 2, Report(slot, Outcome.OK, {"long": 2}, 0.2))
    now = 0.2 if reported else 0.19
    plan = resolve("edf")(core.problem(now), 1.0)
    core.commit(now, plan)
    assert core.requests["long"].stage is Stage.DENOISING
    assert not core.requests["long"].late


def test_a_promised_request_is_not_interrupted(core):
    core.requests["long"].promised = True
    assert core.snapshot(0.13).running == ()
    assert give(core, 0.13, interrupted=("long",)) == []


def test_nor_is_one_that_others_wait_behind(core):
    core.submit(0.65, Submission("next", 512, 512, 4))
    give(core, 0.7, Assignment(("next",), Stage.ENCODING, (0,), 0, 0.8, 0.8))
    assert core.snapshot(0.71).running == ()


def moment(deadline: float, slots: tuple[int, ...] = (0, 1, 2, 3), until: float = 0.3) -> Problem:
    """A long one has some of four GPUs; another one has come that would need them all for 1.6 s."""
    whole = Request("long", 512, 512, Stage.DENOISING, 30, until, -1.0, 20.0, slots=slots)
    rest = replace(whole, steps=40, ready_at=0.05)
    urgent = Request("urgent", 1024, 1024, Stage.DENOISING, 16, 0.0, 0.0, deadline)
    gpus = tuple(Gpu(slot, until if slot in slots else 0.0) for slot in range(4))
    running = (Running(rest, slots, 0.05, until),)
    return Problem(0.0, 0.1, 0.25, gpus, (whole, urgent), PROFILE, running=running)


@pytest.mark.parametrize("policy", ["cp-sat", "ilp", "search"])
def test_who_just_comes_need_not_wait_for_the_end_of_an_order(policy):
    problem = moment(deadline=1.7)
    assert resolve("edf")(problem, 1.0).decision.objective == 1
    plan = resolve(policy)(problem, 10.0)
    assert plan.decision.objective == 2
    assert plan.interrupted == ("long",)
    (order,) = plan.assignments
    assert (order.request_ids, order.begin) == (("urgent",), 0.05)


def test_an_order_goes_on_that_is_in_nobodys_way():
    plan = resolve("cp-sat")(moment(deadline=10.0, slots=(0, 1)), 10.0)
    assert [order.request_ids for order in plan.assignments] == [("urgent",)]
    assert plan.interrupted == ()


def test_nor_is_it_ended_for_who_cannot_be_helped():
    assert resolve("cp-sat")(moment(deadline=1.5), 10.0).interrupted == ()


def test_slots_are_those_of_the_cluster_when_nodes_are_planned_apart():
    alone = moment(deadline=1.7)
    other = tuple(Gpu(slot, 0.0, "a") for slot in range(4))
    moved = tuple(Gpu(gpu.slot + 4, gpu.free_at, "b") for gpu in alone.gpus)
    long, urgent = alone.requests
    there = (4, 5, 6, 7)
    (running,) = alone.running
    rest = replace(running, request=replace(running.request, slots=there, home="b"), slots=there)
    problem = Problem(
        0.0,
        0.1,
        0.25,
        (*other, *moved),
        (replace(long, slots=there, home="b"), replace(urgent, home="b")),
        PROFILE,
        running=(rest,),
    )
    plan = resolve("cp-sat")(problem, 10.0)
    assert plan.interrupted == ("long",)
    assert plan.assignments[0].slots == there


def test_more_are_on_time_than_without():
    """A stream of long ones with orders of a second, and short ones with no time to lose between them."""
    arrivals = [Arrival(3.0 * n, Submission(f"l{n}", 512, 512, 80, 20.0)) for n in range(10)]
    arrivals += [Arrival(0.5 + 2.7 * n, Submission(f"u{n}", 1024, 1024, 10, 1.3)) for n in range(10)]
    config = Config(round_s=1.0, lead_s=0.15)

    def late(policy: str) -> int:
        outcomes = Simulation(resolve(policy), PROFILE, 4, arrivals, config=config).run()
        assert outcomes.rejected == 0
        return sum(bool(tracked.late) for tracked in outcomes.requests)

    assert late("cp-sat") < late("edf")


@pytest.mark.parametrize("policy", ["edf", "cp-sat"])
def test_no_order_is_given_before_the_one_that_ends_has_been_reported(policy):
    """Where steps take longer than foretold, an order that is to end may be overdue."""
    mixed = Workload(mix("skewed"), rate=30.0, slo_scale=1.2, duration=60.0, seed=3)
    conditions = Conditions(step_cv=0.3, latency_s=0.01, seed=3)
    arrivals = mixed.arrivals()
    times = profile("flux1-dev-8xh100")
    outcomes = Simulation(
        resolve(policy), times, 8, arrivals, config=SERVER_CONFIG, conditions=conditions
    ).run()
    assert outcomes.rejected == 0
    assert len(outcomes.requests) == len(arrivals)


def test_who_gives_way_is_expected_back_as_soon_as_its_step_has_ended():
    """A large one can lend half of its GPUs for a small one's steps, if nothing else holds it up."""
    arrivals = [
        Arrival(0.0, Submission("large", 2048, 2048, 50, 6.5)),
        Arrival(1.4428, Submission("small", 512, 512, 50, 2.6)),
    ]
    config = Config(round_s=0.25, lead_s=0.1, margin_s=0.1)
    times = profile("flux1-dev-8xh100")
    outcomes = Simulation(resolve("cp-sat"), times, 8, arrivals, config=config).run()
    assert outcomes.rejected == 0
    assert [tracked.late for tracked in outcomes.requests] == [False, False]
