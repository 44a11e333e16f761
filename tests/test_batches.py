"""Several requests in one order: what becomes of each where one of them, or an executor, goes its own way."""

import math

import pytest
from chaos import PROFILE, chaotic, check_books, check_steps
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.conditions import Conditions
from bench.simulator import Arrival, Simulation
from scheduler.config import Config
from scheduler.orders import Changed, Effect, Give, Order, Outcome, Part, Release, Report, Truncate
from scheduler.problem import Assignment, Plan, Stage
from scheduler.rounds import Rounds
from scheduler.tracking import Submission, Tracked

STEPS = 10


class Desk:
    """A core with requests a, b and c of ten steps at 256x256, d at 512x512, and orders given by hand."""

    def __init__(self, slots: int = 4) -> None:
        self.core = Rounds(Config(grace_s=1.0), PROFILE)
        self.now = 0.0
        for slot in range(slots):
            self.core.executor_joined(self.now, slot)
        for name, side in {"a": 256, "b": 256, "c": 256, "d": 512}.items():
            self.core.submit(self.now, Submission(name, side, side, STEPS))

    def __getitem__(self, name: str) -> Tracked:
        return self.core.requests[name]

    def commit(self, ids: str, stage: Stage, *slots: int, steps: int = 0) -> list[Order]:
        self.now += 0.1
        self.core.problem(self.now)
        assignment = Assignment(tuple(ids), stage, slots, steps, self.now, self.now + 1)
        effects = self.core.commit(self.now, Plan((assignment,)))
        return [effect.order for effect in effects if isinstance(effect, Give)]

    def give(self, ids: str, *slots: int, steps: int) -> Order:
        """Order steps of the requests together."""
        (order,) = self.commit(ids, Stage.DENOISING, *slots, steps=steps)
        return order

    def encode(self, ids: str, *slots: int) -> None:
        for name, slot in zip(ids, slots, strict=True):
            (order,) = self.commit(name, Stage.ENCODING, slot)
            self.done(order)

    def done(self, order: Order, outcome: Outcome = Outcome.OK, **at: int) -> list[Effect]:
        """All members report, each request at the order's end unless told otherwise; -1: not held."""
        effects: list[Effect] = []
        for slot in order.slots:
            effects += self.report(order, slot, outcome, **at)
        return effects

    def report(self, order: Order, slot: int, outcome: Outcome = Outcome.OK, **at: int) -> list[Effect]:
        self.now += 0.1
        held = {part.request_id: part.first_step + order.steps for part in order.parts} | at
        held = {name: step for name, step in held.items() if step >= 0}
        return self.core.order_done(self.now, order.id, Report(slot, outcome, held, 0.4))

    def next(self, name: str) -> tuple[Stage | None, int, tuple[int, ...]]:
        """What is to be planned: stage, first step, holders."""
        return self[name].next_stage, self[name].next_step, self[name].holders


@pytest.fixture
def desk() -> Desk:
    """All encoded, a on slot 0, b on 1, c on 2, d on 3; a is at step 4, b at 1."""
    desk = Desk()
    desk.encode("abcd", 0, 1, 2, 3)
    desk.done(desk.give("a", 0, steps=4))
    desk.done(desk.give("b", 1, steps=1))
    return desk


def test_each_goes_on_from_its_own_step(desk):
    order = desk.give("ab", 0, 1, steps=3)
    assert order.parts == (Part("a", 4, (0,)), Part("b", 1, (1,)))
    effects = desk.core.step_done(desk.now, order.id)
    assert effects == [Changed("a"), Changed("b")]
    assert (desk["a"].steps_done, desk["b"].steps_done) == (5, 2)
    before = desk["a"].gpu_seconds
    desk.done(order)
    assert desk.next("a") == (Stage.DENOISING, 7, (0, 1))
    assert desk.next("b") == (Stage.DENOISING, 4, (0, 1))
    span = desk["a"].spans[-1]
    assert (span.first_step, span.steps, span.batch) == (4, 3, 2)
    # Both have had all the steps, so each pays half of two GPUs for 0.4 s.
    assert desk["a"].gpu_seconds - before == pytest.approx(0.4)


def test_what_ends_with_its_last_step_is_decoded_and_the_rest_goes_on(desk):
    desk.done(desk.give("ab", 0, steps=6))
    assert desk.next("a") == (Stage.DECODING, 10, (0,))
    assert desk.next("b") == (Stage.DENOISING, 7, (0,))


def test_a_batch_takes_no_longer_where_its_requests_pass_over_different_steps():
    desk = Desk()
    desk.core.computed = lambda _: (0, 1, 4, 7, 9)
    desk.encode("ab", 0, 1)
    desk.done(desk.give("a", 0, steps=2))
    order = desk.give("ab", 0, 1, steps=2)
    assert order.steps == 3, "step 4 of a with 0 of b, and 1 of b; the third would be 7 of a"
    assert order.parts == (Part("a", 4, (0,)), Part("b", 0, (1,)))


@pytest.mark.parametrize(
    ("ids", "steps"), [("ad", 2), ("aa", 2), ("ab", 7), ("ab", 0), ("az", 1), ("", 1)], ids=str
)
def test_what_is_no_batch_is_refused(desk, ids, steps):
    assert desk.commit(ids, Stage.DENOISING, 0, steps=steps) == []
    assert desk.core.rejected == 1


def test_requests_with_different_loras_are_no_batch(desk):
    for name, lora in {"x": "sketch:1.0", "y": "sketch:0.5", "z": "sketch:1.0"}.items():
        desk.core.submit(desk.now, Submission(name, 256, 256, STEPS, lora=lora))
    desk.encode("xyz", 0, 1, 2)
    seen = {request.id: request for request in desk.core.problem(desk.now).requests}
    for pair in ("ax", "xy", "yz"):
        assert not seen[pair[0]].can_join(seen[pair[1]])
        assert desk.commit(pair, Stage.DENOISING, 3, steps=1) == []
    assert desk.core.rejected == 3
    assert seen["x"].can_join(seen["z"])
    assert len(desk.give("xz", 3, steps=2).parts) == 2


def test_only_steps_run_as_a_batch():
    desk = Desk()
    assert desk.commit("ab", Stage.ENCODING, 0) == []
    assert desk.core.rejected == 1


def test_a_request_in_two_orders_is_not_given_a_third(desk):
    desk.give("ab", 0, steps=2)
    desk.give("ac", 1, steps=2)
    assert desk.commit("ad", Stage.DENOISING, 2, steps=1) == []
    assert desk.commit("a", Stage.DENOISING, 2, steps=1) == []


def test_a_queued_batch_begins_when_the_last_of_its_requests_is_free(desk):
    running = desk.give("a", 0, steps=2)
    other = desk.give("b", 1, steps=2)
    desk.give("ab", 2, steps=2)
    desk.done(running)
    assert (desk["a"].slots, desk["b"].slots) == ((), (1,))
    desk.done(other)
    assert desk["a"].slots == desk["b"].slots == (2,)


def test_a_cancelled_member_leaves_the_others_alone(desk):
    order = desk.give("abc", 0, 1, steps=3)
    effects = desk.core.cancel(desk.now, "b")
    assert [e for e in effects if isinstance(e, Truncate)] == [Truncate(order.id, 0, "b")]
    desk.core.step_done(desk.now, order.id)
    assert (desk["a"].steps_done, desk["b"].steps_done) == (5, 1)
    # It was dropped after the first of three steps.
    before = desk["b"].gpu_seconds
    effects = desk.done(order, b=2)
    assert desk["b"].gpu_seconds - before == pytest.approx(2 * 0.4 / 7)
    assert Release("b", (0, 1)) in effects
    assert desk["b"].stage is Stage.CANCELLED
    assert desk["b"].flights == []
    assert desk.next("a") == (Stage.DENOISING, 7, (0, 1))
    assert desk.next("c") == (Stage.DENOISING, 3, (0, 1))


def test_a_member_whose_predecessor_falls_short_is_withdrawn_and_the_others_go_on(desk):
    running = desk.give("a", 0, steps=3)
    batch = desk.give("ab", 1, steps=2)
    effects = desk.done(running, a=5)
    assert Truncate(batch.id, 1, "a") in effects
    assert not desk["b"].flights[0].failing
    # Slot 1 never got a's state: what slot 0 holds must stay.
    effects = desk.done(batch, a=-1)
    assert Release("a", (0,)) not in effects
    assert desk.next("a") == (Stage.DENOISING, 5, (0,))
    assert desk.next("b") == (Stage.DENOISING, 3, (1,))
    assert not desk["a"].alone


def test_reports_wait_for_the_predecessors_of_every_member(desk):
    first, second = desk.give("a", 0, 3, steps=2), desk.give("b", 1, 2, steps=2)
    batch = desk.give("ab", 0, 1, steps=2)
    for order, slot in ((first, 0), (second, 1), (batch, 0), (batch, 1)):
        desk.report(order, slot)
    assert [flight.order for flight in desk["a"].flights] == [first, batch]
    desk.report(first, 3)
    assert len(desk["a"].flights) == 1, "b's first order is still out"
    desk.report(second, 2)
    assert desk["a"].flights == desk["b"].flights == []
    assert desk.next("a") == (Stage.DENOISING, 8, (0, 1))


def test_a_batch_is_resolved_even_if_a_member_is_cancelled_meanwhile(desk):
    first = desk.give("a", 0, 3, steps=2)
    batch = desk.give("ab", 0, 1, steps=2)
    for order, slot in ((first, 0), (batch, 0), (batch, 1)):
        desk.report(order, slot)
    desk.core.cancel(desk.now, "a")
    desk.report(first, 3)
    assert desk["a"].flights == desk["b"].flights == []
    assert not desk.core.busy
    assert desk.next("b") == (Stage.DENOISING, 3, (0, 1))


def test_after_an_error_they_go_on_alone_until_it_is_known_whose_it_is(desk):
    order = desk.give("ab", 0, steps=4)
    desk.done(order, Outcome.ERROR, a=5, b=2)
    assert desk["a"].failures == desk["b"].failures == 0
    assert desk.next("a") == (Stage.DENOISING, 5, (0,))
    problem = desk.core.snapshot(desk.now)
    assert {r.id: r.alone for r in problem.requests} == {"a": True, "b": True, "c": False, "d": False}
    assert desk.commit("ac", Stage.DENOISING, 0, steps=1) == []
    desk.done(desk.give("b", 0, steps=1))
    assert not desk["b"].alone
    for _ in range(3):
        desk.done(desk.give("a", 0, steps=1), Outcome.ERROR, a=5)
    assert desk["a"].stage is Stage.FAILED
    desk.done(desk.give("bc", 0, steps=1))
    assert desk.next("c") == (Stage.DENOISING, 1, (0,))


def test_a_lost_executor_sends_each_back_to_what_is_held_of_it(desk):
    order = desk.give("ab", 0, 1, steps=4)
    desk.core.checkpointed("a", 4)
    desk.core.executor_lost(desk.now, 1)
    desk.report(order, 0, Outcome.ABORTED, a=6, b=-1)
    assert desk.next("a") == (Stage.DENOISING, 6, (0,))
    # Slot 1 was the only one that had b.
    assert desk.next("b") == (Stage.ENCODING, 0, ())


def test_an_order_handed_back_is_nobodys_fault(desk):
    desk.done(desk.give("ab", 0, steps=4), Outcome.RETURNED, a=4, b=-1)
    assert desk.next("a") == (Stage.DENOISING, 4, (0,))
    assert desk.next("b") == (Stage.DENOISING, 1, (1,))
    assert not desk["a"].alone


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(1, 12)), min_size=2, max_size=10),
    st.sets(st.integers(0, 9), max_size=3),
    st.sampled_from([1, 2, 4]),
    st.integers(0, 1000),
    st.sampled_from([0.0, 0.05]),
)
def test_a_poisonous_request_fails_alone(wanted, poisoned, gpus, seed, latency):
    arrivals = [Arrival(at, Submission(f"r{i}", 256, 256, n)) for i, (at, n) in enumerate(wanted)]
    conditions = Conditions(poisoned=frozenset(f"r{i}" for i in poisoned), latency_s=latency, seed=seed)
    outcomes = Simulation(chaotic(seed), PROFILE, gpus, arrivals, conditions=conditions).run()
    check_books(outcomes, gpus, math.inf if latency else 0.0)
    for tracked in outcomes.requests:
        if tracked.id in conditions.poisoned:
            assert tracked.stage is Stage.FAILED
            assert tracked.failures == 3
        else:
            assert tracked.failures == 0
            steps = [
                s for span in tracked.spans for s in range(span.first_step, span.first_step + span.steps)
            ]
            assert sorted(steps) == list(range(tracked.submission.steps))


def test_chance_makes_batches():
    """The random policy of the other tests is one that batches."""
    arrivals = [Arrival(0.0, Submission(f"r{i}", 256, 256, 12)) for i in range(12)]
    outcomes = Simulation(chaotic(1), PROFILE, 2, arrivals).run()
    check_books(outcomes, 2)
    for tracked in outcomes.requests:
        check_steps(tracked)
    assert {span.batch for tracked in outcomes.requests for span in tracked.spans} == {1, 2, 3, 4}
    counted = sum(tracked.gpu_seconds for tracked in outcomes.requests)
    assert math.isclose(outcomes.tally.busy_seconds, counted, abs_tol=1e-6)
