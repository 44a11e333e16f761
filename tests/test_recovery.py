"""What the core does about single mishaps, step by step; tests/test_faults.py mixes them at random."""

from chaos import PROFILE

from scheduler.config import Config
from scheduler.orders import Abort, Effect, Give, Order, Outcome, Part, Release, Report, Truncate
from scheduler.problem import Assignment, Plan, Stage
from scheduler.rounds import Rounds
from scheduler.tracking import Submission

STEPS = 10


class Desk:
    """A core with one request of ten steps, and orders given by hand."""

    def __init__(self, slots: int = 4, checkpoint: int = 0) -> None:
        self.core = Rounds(Config(grace_s=1.0), PROFILE)
        self.now = 0.0
        for slot in range(slots):
            self.core.executor_joined(self.now, slot)
        self.core.submit(self.now, Submission("r", 512, 512, STEPS), checkpoint=checkpoint)
        self.tracked = self.core.requests["r"]

    def give(self, stage: Stage, *slots: int, steps: int = 0) -> Order:
        """Order the request's next stage."""
        self.now += 0.1
        self.core.problem(self.now)
        plan = Plan((Assignment(("r",), stage, slots, steps, self.now, self.now + 1),))
        (order,) = [e.order for e in self.core.commit(self.now, plan) if isinstance(e, Give)]
        assert self.core.rejected == 0
        return order

    def done(self, order: Order, *, outcome: Outcome = Outcome.OK, at: int | None = None) -> list[Effect]:
        """All members report, at the order's last step unless told otherwise."""
        step = order.parts[0].first_step + order.steps if at is None else at
        effects: list[Effect] = []
        for slot in order.slots:
            effects += self.report(order, slot, outcome, step)
        return effects

    def report(self, order: Order, slot: int, outcome: Outcome, step: int) -> list[Effect]:
        """One member reports; step -1: it holds nothing."""
        self.now += 0.1
        held = {"r": step} if step >= 0 else {}
        return self.core.order_done(self.now, order.id, Report(slot, outcome, held, 0.1))

    def begun(self, *slots: int, steps: int = 4) -> None:
        """Encoded on the first slot, and some steps done on all of them."""
        self.done(self.give(Stage.ENCODING, slots[0]))
        self.done(self.give(Stage.DENOISING, *slots, steps=steps))

    @property
    def next(self) -> tuple[Stage | None, int, tuple[int, ...]]:
        """What is to be planned: stage, first step, holders."""
        return self.tracked.next_stage, self.tracked.next_step, self.tracked.holders


def test_a_resumed_request_goes_on_from_its_checkpoint():
    desk = Desk(checkpoint=6)
    order = desk.give(Stage.DENOISING, 2, steps=4)
    assert order.parts == (Part("r", 6, (), from_checkpoint=True),)
    desk.done(order)
    assert desk.next == (Stage.DECODING, 10, (2,))


def test_losing_the_only_holder_of_a_waiting_request_goes_back_to_the_checkpoint():
    desk = Desk()
    desk.begun(1, steps=4)
    desk.core.checkpointed("r", 3)
    desk.core.executor_lost(desk.now, 1)
    order = desk.give(Stage.DENOISING, 0, steps=2)
    assert order.parts == (Part("r", 3, (), from_checkpoint=True),)


def test_losing_it_without_a_checkpoint_starts_over():
    desk = Desk()
    desk.begun(1, steps=4)
    desk.core.executor_lost(desk.now, 1)
    assert desk.next == (Stage.ENCODING, 0, ())


def test_losing_one_of_two_holders_loses_nothing():
    desk = Desk()
    desk.begun(0, 1, steps=4)
    desk.core.executor_lost(desk.now, 0)
    assert desk.next == (Stage.DENOISING, 4, (1,))


def test_a_checkpoint_that_arrives_late_is_used():
    desk = Desk()
    desk.begun(1, steps=4)
    desk.core.executor_lost(desk.now, 1)
    desk.core.checkpointed("r", 4)
    assert desk.next == (Stage.DENOISING, 4, ())


def test_a_lost_member_aborts_the_group_and_the_step_is_done_again():
    desk = Desk()
    desk.begun(0, 1, steps=4)
    order = desk.give(Stage.DENOISING, 0, 1, steps=3)
    effects = desk.core.executor_lost(desk.now, 1)
    (abort,) = [effect for effect in effects if isinstance(effect, Abort)]
    assert (abort.slots, abort.lost) == ((0,), (1,))
    assert abort.epoch > order.epoch
    desk.report(order, 0, Outcome.ABORTED, 5)
    assert desk.next == (Stage.DENOISING, 5, (0,))
    assert desk.tracked.failures == 1
    assert desk.give(Stage.DENOISING, 0, 2, steps=5).epoch >= abort.epoch


def test_an_order_that_fails_behind_a_sound_one_is_planned_anew_alone():
    desk = Desk()
    desk.begun(0, steps=4)
    running = desk.give(Stage.DENOISING, 0, steps=2)
    ahead = desk.give(Stage.DENOISING, 1, steps=2)
    effects = desk.core.executor_lost(desk.now, 1)
    assert not [effect for effect in effects if isinstance(effect, Truncate)]
    assert (ahead.parts[0].first_step, desk.next) == (6, (Stage.DENOISING, 6, (0,)))
    assert desk.tracked.failures == 0
    again = desk.give(Stage.DENOISING, 2, steps=4)
    desk.done(running)
    desk.done(again)
    assert desk.next == (Stage.DECODING, 10, (2,))


def test_what_is_queued_behind_a_failed_order_is_taken_back():
    desk = Desk()
    desk.begun(0, steps=4)
    running = desk.give(Stage.DENOISING, 0, steps=2)
    ahead = desk.give(Stage.DENOISING, 1, steps=2)
    effects = desk.report(running, 0, Outcome.ERROR, 5)
    assert Truncate(ahead.id, 1, "r") in effects
    # It was too late for that: what it has done counts all the same.
    desk.report(ahead, 1, Outcome.OK, 8)
    assert desk.next == (Stage.DENOISING, 8, (1,))


def test_reports_that_overtake_their_predecessors_wait_for_them():
    desk = Desk()
    desk.begun(0, steps=4)
    first = desk.give(Stage.DENOISING, 0, 1, steps=2)
    second = desk.give(Stage.DENOISING, 0, 2, steps=2)
    desk.report(first, 0, Outcome.OK, 6)
    desk.report(second, 0, Outcome.OK, 8)
    desk.report(second, 2, Outcome.OK, 8)
    effects = desk.report(first, 1, Outcome.OK, 6)
    # Only what is behind may be freed.
    assert [e for e in effects if isinstance(e, Release)] == [Release("r", (1,))]
    assert desk.next == (Stage.DENOISING, 8, (0, 2))


def test_who_fails_before_it_has_anything_is_no_holder():
    desk = Desk()
    order = desk.give(Stage.ENCODING, 3)
    desk.report(order, 3, Outcome.ERROR, -1)
    assert desk.next == (Stage.ENCODING, 0, ())


def test_state_is_kept_for_a_newer_one_that_is_about_to_leave():
    desk = Desk()
    desk.begun(0, steps=4)
    order = desk.give(Stage.DENOISING, 1, steps=2)
    desk.core.executor_leaving(desk.now, 1)
    effects = desk.done(order)
    assert not [effect for effect in effects if isinstance(effect, Release)]
    desk.core.executor_lost(desk.now, 1)
    assert desk.next == (Stage.DENOISING, 4, (0,))


def test_silent_members_of_a_failed_group_are_aborted_after_the_grace():
    desk = Desk()
    desk.begun(0, 1, steps=4)
    order = desk.give(Stage.DENOISING, 0, 1, steps=2)
    desk.report(order, 0, Outcome.ERROR, 5)
    assert desk.core.tick(desk.now) == []
    (abort,) = desk.core.tick(desk.now + 1.01)
    assert (abort.slots, abort.lost) == ((1,), (0,))
    desk.report(order, 1, Outcome.ABORTED, 5)
    assert desk.next == (Stage.DENOISING, 5, (0, 1))
