"""Leaving a step between two layers: in a model of the protocol, and by real runners and collectives."""

import functools
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.crew import Crew, Failed, Worker
from executor import usp
from executor.group import Left, group_name
from executor.image import ImageSpec
from executor.jobs import Halt, Job, Jobs
from executor.latents import pack, unpack
from executor.runner import Runner
from executor.wake import Wake
from executor.yielding import Exit
from tetriserve.v1 import executor_pb2 as pb
from tetriserve.v1 import types_pb2 as types

CPU = torch.device("cpu")
STEPS = 3
IMAGE = ImageSpec("a red house", 48, 80, STEPS, seed=5, guidance=3.0, negative_prompt="a dark boat")


# The protocol alone: members that are run in any order.


class World:
    """Members of a group in one step of so many layers, whose devices may have `depth` layers open.

    A member's device is through with a layer when it and the leader have begun it; `strict`: when all have.
    """

    def __init__(self, degree: int, layers: int, depth: int, strict: bool) -> None:
        self.begun = [0] * degree
        self.layers, self.depth, self.strict = layers, depth, strict
        self.halted = False
        self.seen: int | None = None
        """The layer before which the leader saw it."""
        self.ends: dict[int, int | None] = {}
        """Before which layer each member left; None: it did not."""
        self._said: dict[str, bytes] = {}
        self._members = [self._member(rank) for rank in range(degree)]

    def run(self, rank: int) -> None:
        """Go on with a member as far as its next pause."""
        next(self._members[rank], None)

    def _wanted(self) -> bool:
        if self.halted and self.seen is None:
            self.seen = self.begun[0]
        return self.halted

    def _through(self, rank: int, layer: int) -> bool:
        others = self.begun if self.strict else (self.begun[0], self.begun[rank])
        return all(begun > layer for begun in others)

    def _member(self, rank: int) -> Iterator[None]:
        group = SimpleNamespace(
            degree=len(self.begun), leads=rank == 0, publish=self._said.__setitem__, peek=self._said.get
        )
        look = Exit(group, 0, self._wanted, Wake(CPU, self.depth)).look
        for layer in range(self.layers):
            while not self._through(rank, layer - 1 - self.depth):
                yield
            yield
            try:
                look()
            except Left:
                self.ends[rank] = layer
                return
            yield
            self.begun[rank] += 1
        while not self._through(rank, self.layers - 1):
            yield
        self.ends[rank] = None


@given(
    degree=st.integers(1, 4),
    layers=st.integers(1, 7),
    depth=st.integers(0, 2),
    strict=st.booleans(),
    turns=st.lists(st.integers(0, 3), max_size=120),
    halt=st.integers(0, 60),
)
def test_all_leave_before_the_same_layer_or_none_does(degree, layers, depth, strict, turns, halt):
    world = World(degree, layers, depth, strict)
    # However the drawn turns end, all get theirs; who waits for one that has left waits for ever.
    everybody = [rank for _ in range(4 * layers + 4) for rank in range(degree)] * degree
    for turn, member in enumerate([*turns, *everybody]):
        world.halted |= turn == halt
        world.run(member % degree)
    assert len(world.ends) == degree, "somebody waits"
    place = None
    if world.seen is not None:
        place = world.seen + (1 + depth if degree > 1 else 0)
    assert set(world.ends.values()) == {place if place is not None and place < layers else None}


# Real runners.


class Told(Exception):
    """What a test does in the middle of a step is not known."""


def run_order(
    worker: Worker,
    model: str,
    packed: list[bytes],
    slots: list[int],
    number: int,
    steps: int,
    told: dict[tuple[int, int], list[str]],
    yields: bool = True,
    depth: int = 0,
    after_s: float | None = None,
) -> SimpleNamespace:
    """An order for some requests, "r0" and so on, from their states, by this worker's own runner.

    `told`: what this member is told as soon as it is in a layer of a step, -1: before all layers. `after_s`:
    it is truncated by another thread so many seconds after its first step began. `depth`: of layers and
    steps that are open, as on CUDA.
    """
    pipeline, states = worker.pipeline(model), [unpack(state) for state in packed]
    names = [f"r{index}" for index in range(len(states))]
    for name, state in zip(names, states, strict=True):
        worker.store.put(name, state)
    reports: list[pb.JoinRequest] = []
    checkpoints: list[int] = []
    members = [pb.Member(slot=slot, store=worker.members[slot].store) for slot in slots]
    order = pb.Order(
        id=number,
        stage=types.STAGE_DENOISING,
        steps=steps,
        group=pb.Group(epoch=1, members=members),
        parts=[pb.Part(request_id=n, first_step=s.step) for n, s in zip(names, states, strict=True)],
        yields=yields,
    )
    job = Job(order, SimpleNamespace(slot=worker.slot, term="leaving", report=reports.append))
    courier = SimpleNamespace(checkpoint=lambda _job, _name, step, _pack: checkpoints.append(step))
    layers: list[int] = []
    step, attend = pipeline.step, usp.attend

    def tell() -> None:
        for word in told.get((len(layers) - 1, layers[-1] - 1), ()):
            match word:
                case "return":
                    job.stop(Halt.RETURNED, "this executor stops")
                case "abort":
                    job.stop(Halt.ABORTED, "lost")
                case "die":
                    os.kill(os.getpid(), signal.SIGKILL)
                case name if name in names:
                    job.drop(name, "truncated")
                case _:
                    raise Told(word)

    def begin(*args):
        if after_s is not None and not layers:
            threading.Thread(
                target=lambda: (time.sleep(after_s), [job.drop(n, "") for n in names]), daemon=True
            ).start()
        layers.append(0)
        tell()
        return step(*args)

    def count(*args):
        layers[-1] += 1
        tell()
        return attend(*args)

    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(pipeline, "step", begin))
        patches.enter_context(mock.patch.object(usp, "attend", count))
        patches.enter_context(mock.patch("executor.runner.Wake", functools.partial(Wake, depth=depth)))
        encodings = SimpleNamespace(misses=0, hits=0)
        runner = Runner(
            pipeline, encodings, None, worker.groups, worker.store, courier, Jobs(), f"worker:{worker.slot}"
        )
        runner._run(job)
    done = [r.order_done for r in reports if r.HasField("order_done")]
    group = worker.groups._groups.get(group_name(1, [worker.members[slot] for slot in slots]))
    return SimpleNamespace(
        outcomes=[d.outcome for d in done],
        held=[state.step for state in done[0].held],
        layers=layers,
        batches=[r.step_done.batch for r in reports if r.HasField("step_done")],
        checkpoints=checkpoints,
        generation=group and group._held.generation,
        states=[pack(worker.store.get(name)) for name in names],
    )


def begin(worker: Worker, model: str, images: list[ImageSpec]) -> list[bytes]:
    pipeline = worker.pipeline(model)
    return [pack(pipeline.start(image, pipeline.encode(image))) for image in images]


class Team:
    """Some members of the crew, and the numbers of their orders."""

    def __init__(self, crew: Crew, model: str, degree: int) -> None:
        self.crew, self.model, self.slots = crew, model, list(range(degree))
        self.start = begin_all(crew, model, [IMAGE])

    def run(self, packed: list[bytes], told=None, teller: int = 0, **more):
        """What an order came to on each member, the leader first; `told` is what one of them is told."""
        global orders
        orders += 1
        steps = more.pop("steps", STEPS - unpack(packed[0]).step)
        jobs = {
            slot: (
                functools.partial(run_order, **more),
                (self.model, packed, self.slots, orders, steps, (told or {}) if slot == teller else {}),
            )
            for slot in self.slots
        }
        return list(self.crew.run(jobs, check=False).values())


orders = 0


def begin_all(crew: Crew, model: str, images: list[ImageSpec]) -> list[bytes]:
    (packed,) = crew.all([0], begin, model, images)
    return packed


def agreed(results: list[SimpleNamespace]) -> SimpleNamespace:
    """What the leader has, with which the others agree."""
    for result in results:
        assert not isinstance(result, Failed), result
        assert result.outcomes == [pb.OUTCOME_OK]
        assert (result.held, result.layers) == (results[0].held, results[0].layers)
        for one, other in zip(result.states, results[0].states, strict=True):
            assert torch.equal(unpack(one).latent, unpack(other).latent)
    assert not any(result.batches or result.checkpoints for result in results[1:])
    return results[0]


def same(one: SimpleNamespace, other: SimpleNamespace) -> bool:
    return all(
        torch.equal(unpack(a).latent, unpack(b).latent) for a, b in zip(one.states, other.states, strict=True)
    )


# Ulysses, both at degree 4, a ring, and two passes with one and two kinds of attention.
@pytest.mark.parametrize("name", ["4 heads", "6 heads", "5 heads", "sd3.5", "pixart"])
@pytest.mark.parametrize("degree", [1, 2, 4])
def test_a_step_is_left_in_any_layer_and_done_again(crew, models, name, degree):
    team = Team(crew, models[name], degree)
    whole = agreed(team.run(team.start))
    layers = whole.layers[0]
    assert whole.layers == [layers] * STEPS
    for depth in (0, 1) if name == "4 heads" else (0,):
        for layer in range(-1, layers):
            cut = agreed(team.run(team.start, {(1, layer): ["r0"]}, depth=depth))
            place = layer + 1 + (1 + depth if degree > 1 else 0)
            held = 1 if place < layers else 2
            assert cut.layers == [layers, min(place, layers)]
            assert (cut.held, cut.batches, cut.checkpoints) == ([held], [1] * held, [held])
            # Once more, in the first step of an order: nothing has come of it.
            again = agreed(team.run(cut.states, {(0, -1): ["r0"]}, depth=depth))
            assert (again.held, again.batches, again.checkpoints) == ([held], [], [])
            assert again.layers == [1 + depth if degree > 1 else 0]
            rest = agreed(team.run(again.states))
            assert rest.held == [STEPS]
            assert same(rest, whole)
            assert rest.generation == whole.generation


@pytest.mark.parametrize("degree", [1, 4])
def test_told_at_any_moment_all_end_at_one_step(crew, models, degree):
    """By another thread, as in life."""
    team, chance = Team(crew, models["6 heads"], degree), random.Random(degree)
    began = time.perf_counter()
    whole = agreed(team.run(team.start))
    length = time.perf_counter() - began
    left = 0
    for _ in range(15):
        results = team.run(team.start, after_s=chance.uniform(0, length))
        for state in results[0].states:
            assert unpack(state).step == results[0].held[0]
        cut = agreed(results)
        left += len(cut.layers) > len(cut.batches)
        if cut.held[0] < STEPS:
            cut = agreed(team.run(cut.states))
        assert same(cut, whole)
        assert cut.generation == whole.generation
    print(f"\ndegree {degree}: {left} of 15 left a step")


def test_a_batch_is_left_when_it_is_for_nobody_any_more(crew, models):
    team = Team(crew, models["sd3.5"], 2)
    other = ImageSpec("a boat", 48, 80, STEPS + 1, seed=6, guidance=5.0)
    start = begin_all(crew, models["sd3.5"], [IMAGE, other])
    whole = agreed(team.run(start))
    layers = whole.layers[0]
    # One of two: the step goes on, for both.
    cut = agreed(team.run(start, {(0, 0): ["r0"], (1, 1): ["r1"]}))
    assert (cut.layers, cut.held, cut.batches) == ([layers, 3], [1, 1], [2])
    cut = agreed(team.run(start, {(1, 0): ["r0", "r1"]}))
    assert (cut.layers, cut.held, cut.batches) == ([layers, 2], [1, 1], [2])
    assert same(agreed(team.run(cut.states)), whole)


@pytest.mark.parametrize("degree", [1, 2])
def test_who_leaves_a_step_and_who_does_not(crew, models, degree):
    team = Team(crew, models["4 heads"], degree)
    layers = agreed(team.run(team.start)).layers[0]
    stopped = agreed(team.run(team.start, {(1, 0): ["return"]}))
    assert (stopped.layers, stopped.held) == ([layers, degree], [1])
    # An order that does not yield, one whose group is lost, one whose leader was not told.
    obeys = agreed(team.run(team.start, {(1, 0): ["r0"]}, yields=False))
    assert (obeys.layers, obeys.held) == ([layers, layers], [2])
    lost = agreed(team.run(team.start, {(1, 0): ["abort"]}))
    assert (lost.layers, lost.held) == ([layers, layers], [2])
    if degree > 1:
        deaf = agreed(team.run(team.start, {(1, 0): ["r0"]}, teller=1))
        assert (deaf.layers, deaf.held) == ([layers] * STEPS, [STEPS])


def test_a_leader_that_dies_in_a_layer_ends_the_order_of_the_others(crew, models):
    team = Team(crew, models["4 heads"], 4)
    try:
        leader, *others = team.run(team.start, {(1, 1): ["die"]})
        assert isinstance(leader, Failed)
        assert leader.kind == "Died"
        for other in others:
            assert (other.outcomes, other.held) == ([pb.OUTCOME_ABORTED], [1])
    finally:
        crew.replace(0)
    assert agreed(team.run(team.start)).held == [STEPS]
