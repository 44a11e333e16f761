"""Schedules in whole steps: sound, found where line-ups find none, never where prices prove there is none."""

import itertools
import random
from functools import cache

import pytest
from chaos import PATIENT

from bench.runs import profile
from scheduler.policies import exact, resolve
from scheduler.policies.beam import Found, joined, schedule
from scheduler.policies.board import Board
from scheduler.policies.lineup import Task
from scheduler.policies.prices import Meter, Prices, prices
from scheduler.problem import Gpu, Problem, Request, Stage
from scheduler.profile import Profile, StepTime

NOW = 10.0
# Little is gained by width, so that who runs beside whom decides; times without a common measure.
PROFILE = Profile(
    [
        StepTime("step", side, side, degree, 1, seconds * degree**-0.7)
        for side, seconds in ((512, 0.31), (1024, 0.73))
        for degree in (1, 2, 4)
    ]
    + [StepTime("decode", side, side, 1, 1, 0.11) for side in (512, 1024)]
    + [StepTime("encode", 0, 0, 1, 1, 0.05)]
)


def moment(seed: int, gpus: int) -> Board:
    """Two or three requests with few steps left and little time, on GPUs that are free sooner or later."""
    rng = random.Random(seed)
    requests = []
    for number in range(rng.choice((2, 3))):
        side = rng.choice((512, 1024))
        steps = rng.randint(1, 3)
        least = steps * PROFILE.step(side, side, gpus) + PROFILE.decode(side, side) + PROFILE.encode()
        requests.append(
            Request(
                f"r{number}",
                side,
                side,
                rng.choice((Stage.ENCODING, Stage.DENOISING)),
                steps,
                ready_at=NOW + rng.choice((0.0, 0.0, 0.1)),
                arrived_at=NOW,
                deadline=NOW + 0.1 + least * rng.uniform(1.0, 2.2),
            )
        )
    slots = tuple(Gpu(slot, NOW + rng.choice((0.0, 0.0, 0.2))) for slot in range(gpus))
    return Board(Problem(NOW, NOW + 1e-6, 0.25, slots, tuple(requests), PROFILE.limited(gpus)))


def possible(board: Board) -> bool:
    """Whether all can be on time on enough GPUs of any number: each at a time that something ends, or later.

    Exhaustive; places are left out, as for the fluid and the beam.
    """
    works = board.works
    opens = sorted(at for at in board.free_at)

    @cache
    def from_here(at: float, left: tuple[int, ...], parts: tuple[tuple[float, int], ...]) -> bool:
        if all(steps == 0 for steps in left):
            return True
        for work, n, (end, _) in zip(works, left, parts, strict=True):
            least = min(n - 1, work.steps) * work.ladder.fastest if n else 0.0
            if n and max(at, end) + least > work.hard_due + 1e-9:
                return False
        free = sum(open_at <= at + 1e-9 for open_at in opens) - sum(k for end, k in parts if end > at + 1e-9)
        options: list[list[tuple[int, float]]] = []
        for z, work in enumerate(works):
            options.append([(0, 0.0)])
            if left[z] == 0 or parts[z][0] > at + 1e-9 or work.ready > at + 1e-9:
                continue
            total = work.steps + 1 + (work.stage is Stage.ENCODING)  # the last is the decoding
            if left[z] == 1:
                options[z].append((1, work.decode))
            elif left[z] == total and work.stage is Stage.ENCODING:
                options[z].append((1, work.encode))
            else:
                options[z] += work.ladder.step.items()
        wakes = [*opens, *(work.ready for work in works)]
        for choice in itertools.product(*options):
            if sum(k for k, _ in choice) > free:
                continue
            after = tuple(
                (at + seconds, k) if k else part for (k, seconds), part in zip(choice, parts, strict=True)
            )
            rest = tuple(n - (k > 0) for n, (k, _) in zip(left, choice, strict=True))
            if any(
                end > work.hard_due + (work.decode if n == 0 else 0.0) + 1e-9
                for (end, k), work, n in zip(after, works, rest, strict=True)
                if k
            ):
                continue
            soon = [t for t in (*wakes, *(end for end, k in after if k)) if t > at + 1e-9]
            if not any(rest):
                return True
            if soon and from_here(min(soon), rest, after):
                return True
        return False

    left = tuple(work.steps + 1 + (work.stage is Stage.ENCODING) for work in works)
    return from_here(NOW, left, tuple((NOW, 0) for _ in works))


def check(board: Board, tasks: list[Task]) -> None:
    """All steps are there; begun in their order, each as early as it can, all are on time."""
    for found in (tasks, joined(tasks)):
        assert all(sum(t.steps for t in found if t.works == (w,)) == w.steps for w in board.works)
        assert all(task.degree in task.works[0].ladder.degrees for task in found)
    if any(work.stage is Stage.ENCODING for work in board.works):
        return  # a schedule does not say when that begins
    ready = {work: work.ready for work in board.works}
    left = {work: work.steps for work in board.works}
    taken: list[tuple[float, float, int]] = []  # begin, end, GPUs
    clock = NOW
    for task in tasks:
        (work,) = task.works
        moments = {max(clock, ready[work]), *(end for _, end, _ in taken), *board.free_at}
        for clock in sorted(at for at in moments if at >= max(clock, ready[work])):
            free = sum(at <= clock + 1e-9 for at in board.free_at)
            free -= sum(k for begin, end, k in taken if begin - 1e-9 <= clock < end - 1e-9)
            if free >= task.degree:
                break
        ready[work] = clock + task.steps * work.ladder.step[task.degree]
        left[work] -= task.steps
        taken.append((clock, ready[work], task.degree))
        if not left[work]:
            assert ready[work] <= work.hard_due + 1e-6
            taken.append((ready[work], ready[work] + work.decode, 1))


@pytest.mark.parametrize(("gpus", "moments"), [(2, 200), (4, 120)])
def test_whom_the_prices_call_impossible_nobody_can_serve(gpus, moments):
    judged = {True: 0, False: 0}
    found = missed = 0
    for seed in range(moments):
        board = moment(seed, gpus)
        if any(work.late for work in board.works):
            continue
        known = prices(board, board.works)
        assert known is not None
        can = possible(board)
        judged[can] += 1
        if known.spare < 0:
            assert not can
            continue
        tasks = schedule(board, board.works, known).tasks
        if tasks is None:
            missed += can
        else:
            assert can
            check(board, tasks)
            found += 1
    assert min(judged.values()) > 5
    assert found > 4 * missed  # a beam follows up few


def squeezed() -> Problem:
    """Three that fit on eight GPUs only if they change places, with FLUX's step times."""
    wanted = ((2048, 8.7), (1024, 3.1), (1024, 3.1))
    requests = tuple(
        Request(f"r{number}", side, side, Stage.ENCODING, 50, 0.0, 0.0, deadline)
        for number, (side, deadline) in enumerate(wanted)
    )
    slots = tuple(Gpu(slot, 0.0) for slot in range(8))
    return Problem(0.0, 1e-6, 0.25, slots, requests, profile("flux1-dev-8xh100"))


@pytest.mark.parametrize("policy", ["cp-sat", "ilp"])
def test_whom_no_line_up_can_have_on_time_a_schedule_has(policy, monkeypatch):
    plan = resolve(policy)
    with_it = plan(squeezed(), PATIENT).decision
    assert (with_it.source, with_it.objective) == ("solver", 3.0)
    monkeypatch.setattr(exact, "schedule", lambda *_, **__: Found(None, 0))
    without = plan(squeezed(), PATIENT).decision
    assert (without.status, without.objective, without.bound) == ("not run", 2.0, 3.0)


def test_what_is_proved_impossible_closes_the_bound(monkeypatch):
    monkeypatch.setattr(exact, "prices", lambda *_: Prices(-1.0, (), Meter((0.0,), ())))
    decision = resolve("cp-sat")(squeezed(), PATIENT).decision
    assert (decision.status, decision.objective, decision.bound) == ("optimal", 2.0, 2.0)


def test_the_same_moment_has_the_same_schedule():
    board = Board(squeezed())
    found = [schedule(board, board.works, prices(board, board.works)) for _ in range(2)]
    assert found[0].tasks is not None
    assert found[0] == Found(found[1].tasks, found[1].effort)


def test_no_more_ways_than_its_effort():
    board = Board(squeezed())
    assert schedule(board, board.works, prices(board, board.works), 10) == Found(None, 10)
