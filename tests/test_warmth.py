"""Groups are warmed before they are used, where that is asked for; and warmed anew when they are others."""

import itertools

import pytest
from chaos import PROFILE
from hypothesis import given
from hypothesis import strategies as st
from test_scheduler import Processes, client, processes  # noqa: F401  (fixtures)

from scheduler.config import Config
from scheduler.orders import Abort, Effect, Give, Order, Outcome, Report
from scheduler.placement import Layout, layout_of
from scheduler.rounds import Rounds
from scheduler.tracking import Submission
from scheduler.warmth import ATTEMPTS, Warmth


class Desk:
    """A core whose groups are to be warm; orders are reported by hand."""

    def __init__(self, slots: int) -> None:
        self.core = Rounds(Config(), PROFILE)
        self.core.warm_groups = True
        self.now = 0.0
        for slot in range(slots):
            self.core.executor_joined(self.now, slot, "node")

    def warm_up(self) -> list[Order]:
        return [effect.order for effect in self.core.warm_up(self.now) if isinstance(effect, Give)]

    def report(self, order: Order, outcome: Outcome = Outcome.OK) -> list[Effect]:
        self.now += 0.1
        return list(
            itertools.chain.from_iterable(
                self.core.order_done(self.now, order.id, Report(slot, outcome)) for slot in order.slots
            )
        )

    @property
    def blocks(self) -> set[tuple[int, ...]]:
        """Groups of several that policies may use."""
        problem = self.core.snapshot(self.now)
        assert problem is not None
        layout = layout_of(problem.gpus)
        assert problem.profile.max_degree == layout.max_degree
        return {slots for slots in layout.members.values() if len(slots) > 1}


PAIRS = {(0, 1), (2, 3), (4, 5), (6, 7)}
ALL = PAIRS | {(0, 1, 2, 3), (4, 5, 6, 7), (0, 1, 2, 3, 4, 5, 6, 7)}


def test_eight_executors_have_seven_groups_and_use_those_that_are_warm():
    desk = Desk(8)
    orders = desk.warm_up()
    assert {order.slots for order in orders} == ALL
    assert all(order.stage is None and not order.measures for order in orders)
    assert desk.warm_up() == []
    assert desk.core.preparing
    assert not desk.core.measuring
    assert desk.blocks == set()
    for order in orders:
        desk.report(order)
    assert not desk.core.preparing
    assert desk.blocks == ALL
    assert desk.warm_up() == []


def test_a_wide_group_waits_for_its_halves():
    desk = Desk(4)
    *narrow, wide = sorted(desk.warm_up(), key=lambda order: len(order.slots))
    desk.report(wide)
    assert desk.blocks == set()
    desk.report(narrow[0])
    assert desk.blocks == {narrow[0].slots}
    desk.report(narrow[1])
    assert desk.blocks == {(0, 1), (2, 3), (0, 1, 2, 3)}


def test_a_group_that_cannot_be_made_is_left_alone():
    desk = Desk(2)
    for _ in range(ATTEMPTS):
        (order,) = desk.warm_up()
        desk.report(order, Outcome.ABORTED)
    assert desk.warm_up() == []
    assert desk.blocks == set()


def test_a_lost_member_cools_the_groups_that_it_was_in():
    desk = Desk(4)
    for order in desk.warm_up():
        desk.report(order)
    desk.core.executor_lost(desk.now, 3)
    assert desk.warm_up() == []
    assert desk.blocks == {(0, 1)}
    desk.core.executor_joined(desk.now, 3, "node")
    assert desk.blocks == {(0, 1)}
    orders = desk.warm_up()
    assert {order.slots for order in orders} == {(2, 3), (0, 1, 2, 3)}
    for order in orders:
        desk.report(order)
    assert desk.blocks == {(0, 1), (2, 3), (0, 1, 2, 3)}


def test_an_abort_cools_the_groups_of_its_members():
    desk = Desk(4)
    for order in desk.warm_up():
        desk.report(order)
    (effect,) = [e for e in desk.core.measure(desk.now, (0, 1)) if isinstance(e, Give)]
    aborts = [e for e in desk.core.executor_lost(desk.now, 1) if isinstance(e, Abort)]
    assert aborts[0].slots == (0,)
    desk.core.order_done(desk.now, effect.order.id, Report(0, Outcome.ABORTED))
    desk.core.executor_joined(desk.now, 1, "node")
    assert {order.slots for order in desk.warm_up()} == {(0, 1), (0, 1, 2, 3)}


def test_without_the_wish_nothing_is_warmed():
    desk = Desk(4)
    desk.core.warm_groups = False
    assert desk.warm_up() == []
    assert desk.blocks == {(0, 1), (2, 3), (0, 1, 2, 3)}


def test_requests_run_alone_while_groups_are_cold():
    desk = Desk(2)
    desk.core.submit(desk.now, Submission("r", 1024, 1024, 10))
    problem = desk.core.problem(desk.now)
    assert problem is not None
    assert problem.degrees(problem.requests[0]) == (1,)


@given(st.sets(st.integers(0, 15), min_size=1), st.data())
def test_sites_join_just_the_blocks_that_are_warm_throughout(slots, data):
    layout = Layout((slot, "n") for slot in slots)
    wide = [members for members in layout.members.values() if len(members) > 1]
    warm = set(data.draw(st.lists(st.sampled_from(wide), unique=True))) if wide else set()
    warmth = Warmth(lambda _slots: 7)
    for members in warm:
        warmth.note(members, 7)
    for members in set(wide) - warm:
        warmth.note(members, 6)  # under an older name
    sites = warmth.sites(layout)
    usable = set(Layout(sites.items()).members.values())
    inside = {m: {w for w in wide if set(w) <= set(m)} for m in wide}
    assert usable == {(slot,) for slot in slots} | {m for m in wide if inside[m] <= warm}


@pytest.mark.parametrize("wish", ["always", "never"])
def test_the_scheduler_warms_groups_before_it_is_ready(processes: Processes, client, wish):  # noqa: F811
    processes.scheduler("--warm-groups", wish, "--expect", "4")
    for _ in range(4):
        processes.executor()
    processes.wait(client, 4)
    logs = "\n".join(path.read_text() for path in processes.folder.glob("*.log"))
    warmed = logs.count("warm up of")
    # Two pairs and the four, told by each member; their step times are known.
    assert warmed == (8 if wish == "always" else 0)
    request = client.submit("a house", "1024x1024", steps=4)
    assert client.wait(request.id).steps_done == 4
