"""The demo's batch suits the machine, by the quotes of a client that knows only how fast it is."""

from typing import cast

import pytest

from tetriserve import Client, Quote
from tetriserve.batch import BATCH_SECONDS, LOAD, LOOSEST, PICTURES, TIGHTEST, Wish, plan


class Machine:
    """Quotes `seconds` for a step at 512x512, on one of two executors."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def quote(self, size: tuple[int, int], *, steps: int) -> Quote:
        work = self.seconds * steps * size[0] * size[1] / 512**2
        return Quote(earliest=work, alone=work / 2, gpu_seconds=work)

    def plan(self, slowness: float = 1.0, count: int = len(PICTURES)) -> list[Wish]:
        return plan(cast(Client, self), count, executors=2, seed=1, slowness=slowness)

    def alone(self, wish: Wish) -> float:
        return self.quote(wish.size, steps=wish.steps).alone

    def busy(self, wishes: list[Wish]) -> float:
        return sum(self.alone(wish) for wish in wishes)


def test_a_fast_machine_gets_all_steps_and_deadlines_in_its_own_time() -> None:
    machine = Machine(0.01)
    wishes = machine.plan()
    assert [(wish.prompt, wish.size, wish.steps) for wish in wishes] == list(PICTURES)
    assert [wish.arrival for wish in wishes] == sorted(wish.arrival for wish in wishes)
    assert wishes[0].arrival == 0 < wishes[1].arrival
    assert all(TIGHTEST <= wish.deadline / machine.alone(wish) <= LOOSEST for wish in wishes)
    assert len({wish.file for wish in wishes}) == len(wishes)


def test_the_same_seed_is_the_same_batch_at_any_speed() -> None:
    fast, faster = Machine(0.01).plan(), Machine(0.005).plan()
    assert Machine(0.01).plan() == fast
    for wish, sooner in zip(fast, faster, strict=True):
        assert wish.arrival == pytest.approx(2 * sooner.arrival)
        assert wish.deadline == pytest.approx(2 * sooner.deadline)


@pytest.mark.parametrize(("seconds", "slowness"), [(1.0, 1.0), (0.5, 3.0)])
def test_a_slow_or_busy_machine_gets_fewer_steps(seconds: float, slowness: float) -> None:
    machine = Machine(seconds)
    wishes = machine.plan(slowness)
    assert slowness * machine.busy(wishes) <= BATCH_SECONDS * LOAD
    assert all(2 <= wish.steps < full for wish, (_, _, full) in zip(wishes, PICTURES, strict=True))
    assert all(wish.deadline >= slowness * TIGHTEST * machine.alone(wish) for wish in wishes)


def test_more_requests_than_pictures_go_round_again() -> None:
    wishes = Machine(0.001).plan(count=20)
    assert [wish.number for wish in wishes] == list(range(1, 21))
    assert wishes[14].prompt == wishes[0].prompt
    assert wishes[14].file != wishes[0].file
