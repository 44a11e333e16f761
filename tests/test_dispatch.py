"""Several nodes: each is planned apart, groups stay within one, and requests go where there is room."""

import math
import random
from dataclasses import replace

import pytest
from chaos import PATIENT, PROFILE, SIZES, chaotic, check_books, check_steps
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.conditions import Conditions, Fault
from bench.simulator import Arrival, Simulation
from scheduler.config import Config
from scheduler.dispatch import Load, best, choose, homes
from scheduler.policies import resolve
from scheduler.policies.by_node import by_node
from scheduler.problem import Assignment, Decision, Gpu, Plan, Problem, Request, Stage
from scheduler.rounds import Rounds
from scheduler.tracking import Submission


def request(name: str, side: int = 512, steps: int = 10, deadline: float = 10.0, **more) -> Request:
    return Request(name, side, side, Stage.DENOISING, steps, 0.0, 0.0, deadline, **more)


def cluster(nodes: int, requests: tuple[Request, ...], size: int = 4, **free_at: float) -> Problem:
    gpus = tuple(
        Gpu(slot, free_at.get(f"n{slot // size}", 0.0), f"n{slot // size}") for slot in range(nodes * size)
    )
    return Problem(0.0, 1e-6, 0.25, gpus, requests, PROFILE.limited(size))


wanted = st.lists(
    st.tuples(st.floats(0, 3), st.sampled_from(SIZES), st.integers(1, 12), st.none() | st.floats(0.1, 10)),
    min_size=1,
    max_size=16,
)


@settings(max_examples=100, deadline=None)
@given(
    wanted,
    st.sampled_from([(2, 1), (2, 2), (3, 4), (4, 2)]),
    st.integers(0, 1000),
    st.lists(st.tuples(st.floats(0, 4), st.integers(0, 11), st.booleans()), max_size=4),
    st.sampled_from([0.0, 0.02]),
)
def test_every_request_ends_on_several_nodes_whatever_happens(drawn, shape, seed, deaths, decision):
    nodes, size = shape
    arrivals = [
        Arrival(at, Submission(f"r{i}", *pixels, steps, deadline))
        for i, (at, pixels, steps, deadline) in enumerate(drawn)
    ]
    faults = sorted(Fault(at, slot % (nodes * size), repair_s=1.0, clean=clean) for at, slot, clean in deaths)
    policy = by_node(chaotic(seed))
    simulation = Simulation(
        policy,
        PROFILE,
        nodes * size,
        arrivals,
        config=Config(lead_s=0.05, attempts=100),
        conditions=Conditions(step_cv=0.1, decision_s=decision, seed=seed),
        faults=faults,
        node_size=size,
    )
    outcomes = simulation.run()
    check_books(outcomes, nodes * size)
    for tracked in outcomes.requests:
        assert tracked.stage is Stage.DONE
        if not faults:
            check_steps(tracked)
        for span in tracked.spans:
            assert len({slot // size for slot in span.slots}) == 1


@pytest.mark.parametrize("policy", ["edf", "cp-sat", "tetriserve", "srtf", "fixed:2"])
def test_a_node_is_planned_as_if_it_were_alone(policy):
    there = tuple(request(f"r{n}", side, home="n1") for n, side in enumerate([256, 512, 1024, 1024]))
    moment = cluster(2, there)
    plan = resolve(policy)(moment, PATIENT)
    alone = replace(moment, gpus=tuple(Gpu(slot, 0.0) for slot in range(4)))
    expected = resolve(policy)(alone, PATIENT)
    assert plan.assignments
    assert plan.late == expected.late
    shifted = tuple(replace(a, slots=tuple(s + 4 for s in a.slots)) for a in expected.assignments)
    assert plan.assignments == shifted


def test_all_nodes_are_planned_and_their_decisions_added_up():
    requests = tuple(request(f"r{n}") for n in range(8))
    plan = resolve("edf")(cluster(4, requests), PATIENT)
    assert {a.request_ids[0] for a in plan.assignments} == {r.id for r in requests}
    assert {slot // 4 for a in plan.assignments for slot in a.slots} == {0, 1, 2, 3}
    assert plan.decision.objective == 8
    assert plan.unplanned == ()


def test_what_the_budget_does_not_suffice_for_is_left_for_the_next_plan():
    requests = tuple(request(f"r{n}", home=f"n{n}") for n in range(4))
    plan = resolve("edf")(cluster(4, requests), 0.0)
    assert [a.request_ids[0] for a in plan.assignments] == ["r0"]
    assert plan.unplanned == ("n1", "n2", "n3")


def test_a_request_stays_with_its_state():
    here = request("here", slots=(5, 6))
    crowd = tuple(request(f"c{n}", 1024, 50, home="n1") for n in range(6))
    moment = cluster(3, (here, *crowd))
    nodes = {f"n{n}": [gpu for gpu in moment.gpus if gpu.node == f"n{n}"] for n in range(3)}
    assert homes(lambda _node: PROFILE, nodes, moment.requests, 0.0)["here"] == "n1"
    # A node that is gone keeps nobody.
    del nodes["n1"]
    assert homes(lambda _node: PROFILE, nodes, moment.requests, 0.0)["here"] in ("n0", "n2")


def test_a_new_request_goes_where_the_most_is_left_before_its_deadline():
    urgent, patient = request("urgent", 1024, 5, 1.5), request("patient", 1024, 10, 60.0)
    gpus = [Gpu(slot, 0.0) for slot in range(4)]
    # More to do on one of them, but later.
    loads = {
        "soon": Load.of(PROFILE, gpus, [request(f"s{n}", 1024, 4, 1.4) for n in range(4)], 0.0),
        "later": Load.of(PROFILE, gpus, [request(f"l{n}", 1024, 20, 50.0) for n in range(4)], 0.0),
    }
    assert loads["soon"].backlog < loads["later"].backlog
    assert choose(dict(loads), urgent, 0.0) == "later"
    busy = Load.of(PROFILE, [Gpu(slot, 1.4) for slot in range(4)], [], 0.0)
    assert choose({"busy": busy, "idle": Load.of(PROFILE, gpus, [], 0.0)}, urgent, 0.0) == "idle"
    assert choose({"busy": busy}, urgent, 0.0, must_fit=True) is None
    assert choose({"busy": busy}, patient, 0.0, must_fit=True) == "busy"


class Spy:
    """A policy that keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Problem] = []

    def __call__(self, problem: Problem, budget_s: float) -> Plan:
        self.asked.append(problem)
        return resolve("edf")(problem, budget_s)


def test_an_event_on_a_node_leaves_the_others_alone():
    spy = Spy()
    arrivals = [Arrival(0.001 * n, Submission(f"r{n}", 512, 512, 20, 30.0)) for n in range(16)]
    outcomes = Simulation(spy, PROFILE, 16, arrivals, config=Config(lead_s=0.05), node_size=2).run()
    assert all(not tracked.late for tracked in outcomes.requests)
    nodes = [len({gpu.node for gpu in problem.gpus}) for problem in spy.asked]
    assert sum(nodes) / len(nodes) < 4
    assert any(n == 1 for n in nodes)


def test_requests_of_a_lost_node_go_on_elsewhere():
    arrivals = [Arrival(0.0, Submission(f"r{n}", 512, 512, 40, 60.0)) for n in range(8)]
    faults = [Fault(0.5, slot, repair_s=1000.0) for slot in (2, 3)]
    outcomes = Simulation(resolve("edf"), PROFILE, 4, arrivals, faults=faults, node_size=2).run()
    for tracked in outcomes.requests:
        assert tracked.stage is Stage.DONE
        assert all(set(span.slots) <= {0, 1} for span in tracked.spans if span.begin > 0.5)
    assert any(set(span.slots) & {2, 3} for tracked in outcomes.requests for span in tracked.spans)


def test_an_idle_node_takes_over_what_waits_elsewhere():
    # All arrive while the first node is the only one.
    arrivals = [Arrival(0.0, Submission(f"r{n}", 1024, 1024, 20)) for n in range(8)]
    faults = [Fault(0.0, slot, repair_s=2.0) for slot in (2, 3)]
    outcomes = Simulation(resolve("edf"), PROFILE, 4, arrivals, faults=faults, node_size=2).run()
    assert any(set(span.slots) & {2, 3} for tracked in outcomes.requests for span in tracked.spans)


def test_nodes_that_cannot_do_all_alone_are_planned_together():
    arrivals = [Arrival(0.1 * n, Submission(f"r{n}", 512, 512, 10, 60.0)) for n in range(6)]
    apart = frozenset({Stage.ENCODING, Stage.DECODING})
    roles = {slot: apart if slot < 2 else frozenset({Stage.DENOISING}) for slot in range(4)}
    outcomes = Simulation(resolve("edf"), PROFILE, 4, arrivals, roles=roles, node_size=2).run()
    for tracked in outcomes.requests:
        assert not tracked.late
        assert {span.stage: max(span.slots) < 2 for span in tracked.spans} == {
            Stage.ENCODING: True,
            Stage.DENOISING: False,
            Stage.DECODING: True,
        }


@settings(max_examples=30, deadline=None)
@given(wanted, st.sampled_from(["edf", "cp-sat", "tetriserve", "srtf"]), st.sampled_from([1, 2, 4]))
def test_groups_stay_within_an_island(drawn, policy, island):
    arrivals = [
        Arrival(at, Submission(f"r{i}", *pixels, steps, deadline))
        for i, (at, pixels, steps, deadline) in enumerate(drawn)
    ]
    outcomes = Simulation(
        resolve(policy), PROFILE, 8, arrivals, config=Config(lead_s=0.05), island_size=island
    ).run()
    check_books(outcomes, 8)
    for tracked in outcomes.requests:
        check_steps(tracked)
        for span in tracked.spans:
            assert len({slot // island for slot in span.slots}) == 1


def test_slots_of_a_plan_are_those_of_the_cluster():
    def first_free(problem: Problem, _budget_s: float) -> Plan:
        assert all(gpu.slot < 4 for gpu in problem.gpus)
        first = problem.requests[0]
        return Plan((Assignment((first.id,), first.stage, (problem.gpus[0].slot,), 1, 0.0, 0.1),))

    moment = cluster(3, (request("a", home="n0"), request("c", home="n2")))
    assert [a.slots for a in by_node(first_free)(moment, PATIENT).assignments] == [(0,), (8,)]


@pytest.mark.parametrize(
    ("decisions", "source", "status"),
    [
        ([("heuristic", "all on time"), ("search", "too many")], "search", "too many"),
        (
            [("search", "optimal"), ("solver", "feasible"), ("heuristic", "nothing to give")],
            "solver",
            "feasible",
        ),
        (
            [("heuristic", "out of time"), ("heuristic", "failed: no licence")],
            "heuristic",
            "failed: no licence",
        ),
        ([("heuristic", ""), ("heuristic", "")], "heuristic", ""),
    ],
)
def test_the_decision_of_many_nodes_is_as_sure_as_the_least_sure(decisions, source, status):
    found = iter(Decision(*decision, objective=1.0, bound=2.0) for decision in decisions)
    moment = cluster(len(decisions), tuple(request(f"r{n}", home=f"n{n}") for n in range(len(decisions))))
    plan = by_node(lambda _problem, _budget_s: Plan(decision=next(found)))(moment, PATIENT)
    assert (plan.decision.source, plan.decision.status) == (source, status)
    assert plan.decision.gap == len(decisions)


@settings(max_examples=30, deadline=None)
@given(
    wanted,
    st.sampled_from(["edf", "cp-sat", "tetriserve", "srtf", "chaotic"]),
    st.lists(st.floats(0.3, 4), min_size=1, max_size=3),
    st.booleans(),
    st.integers(0, 1000),
)
def test_every_request_ends_on_nodes_of_any_pace(drawn, policy, paces, knows, seed):
    arrivals = [
        Arrival(at, Submission(f"r{i}", *pixels, steps, deadline))
        for i, (at, pixels, steps, deadline) in enumerate(drawn)
    ]
    conditions = Conditions(step_cv=0.1, node_paces=tuple(paces), knows_paces=knows, seed=seed)
    plan = by_node(chaotic(seed)) if policy == "chaotic" else resolve(policy)
    outcomes = Simulation(
        plan, PROFILE, 12, arrivals, config=Config(lead_s=0.05), conditions=conditions, node_size=4
    ).run()
    check_books(outcomes, 12)
    assert outcomes.rejected == 0
    for tracked in outcomes.requests:
        assert tracked.stage is Stage.DONE
        check_steps(tracked)


def on_time_at(paces: tuple[float, ...], knows: bool, seed: int) -> int:
    """Of a minute of requests on two nodes."""
    rng = random.Random(seed)
    arrivals, at = [], 0.0
    while (at := at + rng.expovariate(2.5)) < 60:
        pixels = rng.choice(SIZES)
        wait = 2.2 * PROFILE.least_seconds(*pixels, 12)
        arrivals.append(Arrival(at, Submission(f"r{len(arrivals)}", *pixels, 12, wait)))
    conditions = Conditions(node_paces=paces, knows_paces=knows)
    config = Config(lead_s=0.05, margin_s=0.05)
    outcomes = Simulation(
        resolve("edf"), PROFILE, 8, arrivals, config=config, conditions=conditions, node_size=4
    ).run()
    return sum(tracked.late is False for tracked in outcomes.requests)


def test_more_are_on_time_where_each_node_is_planned_at_its_pace():
    seeds = range(3)
    known = [on_time_at((1.0, 2.0), True, seed) for seed in seeds]
    unknown = [on_time_at((1.0, 2.0), False, seed) for seed in seeds]
    assert all(a > b for a, b in zip(known, unknown, strict=True))
    assert sum(known) > 1.1 * sum(unknown)
    # Where all keep to the profile there is nothing to know.
    assert on_time_at((1.0,), True, 0) == on_time_at((), True, 0)


def test_a_node_keeps_nobody_who_can_only_be_on_time_on_a_faster_one():
    slow = PROFILE.scaled({}, others=2.0)
    urgent, patient = request("urgent", 1024, 5, 1.4), request("patient", 1024, 5, 60.0)
    gpus = [Gpu(slot, 0.0) for slot in range(4)]
    busy = [request(f"s{n}", 1024, 4, 50.0) for n in range(4)]
    loads = {"a": Load.of(slow, gpus, [], 0.0), "b": Load.of(PROFILE, gpus, busy, 0.0)}
    assert best(loads, urgent, 0.0) == ["b", "a"]
    assert choose(dict(loads), patient, 0.0) == "a"
    assert choose(dict(loads), urgent, 0.0) == "b"
    idle = {"a": Load.of(slow, gpus, [], 0.0), "b": Load.of(PROFILE, gpus, [], 0.0)}
    assert choose(idle, request("whenever", deadline=math.inf), 0.0) == "b"


def test_nodes_planned_together_are_planned_at_the_slowest_pace():
    core = Rounds(Config(), PROFILE)
    for slot in range(4):
        apart = frozenset({Stage.ENCODING, Stage.DECODING}) if slot < 2 else frozenset({Stage.DENOISING})
        core.executor_joined(0.0, slot, f"n{slot // 2}", apart)
    core.profiles = {"n1": PROFILE.scaled({1: 3.0})}
    problem = core.snapshot(0.0)
    assert problem.profile.step(512, 512, 1) == pytest.approx(3 * PROFILE.step(512, 512, 1))
    assert problem.profile.step(512, 512, 2) == PROFILE.step(512, 512, 2)
    assert problem.profile.decode(512, 512) == PROFILE.decode(512, 512)


def test_a_node_alone_is_planned_at_its_own_pace():
    core = Rounds(Config(), PROFILE.limited(2))
    for slot in range(4):
        core.executor_joined(0.0, slot, f"n{slot // 2}")
    slow = PROFILE.limited(2).scaled({}, others=2.0)
    core.profiles = {"n1": slow}
    assert core.snapshot(0.0, ["n1"]).profile is slow
    both = core.snapshot(0.0)
    assert both.profile_of("n1") is slow
    assert both.profile_of("n0") is both.profile is core.profile
    for home, seconds in (("n0", 1.0), ("n1", 2.0)):
        moment = replace(both, requests=(request("r", 512, 100, home=home),))
        (order,) = resolve("edf")(moment, PATIENT).assignments
        one = seconds * PROFILE.step(512, 512, order.degree)
        assert (order.end - order.begin) / order.steps == pytest.approx(one)
