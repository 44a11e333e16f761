"""The picture does not depend on the schedule: real processes, gloo, fp32, against one process alone."""

import math
import random
import time
from itertools import combinations

import numpy as np
import pytest
import torch
from small_models import NAMES

from bench.crew import Crew, Failed, Worker, die
from executor import attention
from executor.image import ImageSpec
from executor.latents import State, pack, unpack

# 63, 64, 15, 40 and 2 image tokens; with 2 and the shortest text, the last of four members has none at all.
SIZES = [(112, 144), (128, 128), (48, 80), (128, 80), (32, 16)]
TOLERANCE = 1e-5

worst = 0.0


@pytest.fixture(scope="module", autouse=True)
def _report_worst():
    yield
    print(f"\nlargest difference from degree 1: {worst:.2e}")


def begin(worker: Worker, folder: str, images: list[ImageSpec]) -> list[bytes]:
    pipeline = worker.pipeline(folder)
    return [pack(pipeline.start(image, pipeline.encode(image))) for image in images]


def run(
    worker: Worker, folder: str, packed: list[bytes], steps: int, slots: list[int], meeting: str, epoch=1
):
    """Some steps of a batch of requests on a group; the states come packed and go packed."""
    pipeline, group = worker.pipeline(folder), worker.group(epoch, slots, meeting)
    states = [unpack(state) for state in packed]
    for _ in range(steps):
        states = pipeline.step(states, group)
    return [pack(state) for state in states]


def alone(crew: Crew, folder: str, packed: bytes) -> State:
    """All steps of a request at degree 1."""
    state = unpack(packed)
    (result,) = crew.all([0], run, folder, [packed], state.image.steps - state.step, [0], "alone")
    return unpack(result[0])


def differs(a: State, b: State) -> float:
    global worst
    assert a.step == b.step
    difference = (a.latent - b.latent).abs().max().item()
    worst = max(worst, difference)
    return difference


def draw(worker: Worker, folder: str, packed: bytes, slots: list[int], steps: int, meeting: str):
    """Some steps of a request in bfloat16, and, at the end, its picture."""
    pipeline, group = worker.pipeline(folder, "bfloat16"), worker.group(1, slots, meeting)
    state = unpack(packed)
    for _ in range(steps):
        (state,) = pipeline.step([state], group)
    return pack(state), np.asarray(pipeline.decode(state), float) if state.done and group.leads else None


def begin_in_bfloat16(worker: Worker, folder: str, image: ImageSpec) -> bytes:
    pipeline = worker.pipeline(folder, "bfloat16")
    return pack(pipeline.start(image, pipeline.encode(image)))


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Decibels; of equal pictures it is infinite."""
    error = np.square(a - b).mean()
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def spec(size: tuple[int, int], steps: int = 6, seed: int = 1, guidance: float | None = None) -> ImageSpec:
    return ImageSpec("a red house under a yellow sun", *size, steps, seed, guidance, "a dark boat")


@pytest.mark.parametrize("name", NAMES)
def test_any_sequence_of_degrees_and_members_gives_the_picture_of_degree_1(crew, models, name):
    chance = random.Random(name)
    for size in SIZES:
        image = spec(size, steps=8, seed=chance.getrandbits(64))
        ((packed,),) = crew.all([3], begin, models[name], [image])
        expected = alone(crew, models[name], packed)
        step = 0
        while step < image.steps:
            slots = chance.sample(range(4), chance.choice([1, 2, 2, 4, 4]))
            steps = min(chance.choice([1, 2, 3]), image.steps - step)
            results = crew.all(slots, run, models[name], [packed], steps, slots, f"{name}{size}{step}")
            (packed,), step = results[0], step + steps
            # After each step every member holds the whole latent, to the last bit.
            for (other,) in results[1:]:
                assert torch.equal(unpack(other).latent, unpack(packed).latent)
        assert differs(unpack(packed), expected) <= TOLERANCE, (size, slots)


SCHEDULES = (
    [([0], 8)],
    [([0, 1], 8)],
    [([3, 2, 1, 0], 8)],
    [([2, 0, 3], 8)],
    [([1], 2), ([0, 1, 2, 3], 2), ([1, 2], 2), ([3], 2)],
)


@pytest.mark.parametrize("name", ["4 heads", "sd3.5", "sd3.5, 5 heads", "pixart, 6 heads"])
def test_in_bfloat16_pictures_of_any_two_schedules_look_alike(crew, models, name):
    (packed,) = crew.all([0], begin_in_bfloat16, models[name], spec((112, 144), steps=8))
    pictures = []
    for i, schedule in enumerate(SCHEDULES):
        state = packed
        for j, (slots, steps) in enumerate(schedule):
            meeting = f"bfloat16 {name} {i} {j}"
            state, picture = crew.all(slots, draw, models[name], state, slots, steps, meeting)[0]
        pictures.append(picture)
    between = [psnr(a, b) for a, b in combinations(pictures, 2)]
    print(f"\n{name}: {min(between):.1f} dB")
    assert min(between) >= 50


def test_three_members_share_a_step_too(crew, models):
    for name in ("4 heads", "6 heads", "sd3.5"):
        ((packed,),) = crew.all([0], begin, models[name], [spec((112, 144))])
        results = crew.all([2, 0, 3], run, models[name], [packed], 6, [2, 0, 3], f"three {name}")
        assert differs(unpack(results[0][0]), alone(crew, models[name], packed)) <= TOLERANCE


def use_attention(_: Worker, name: str) -> None:
    attention.use_backend(name, "cpu", torch.float32)


def test_a_ring_adds_up_with_another_kernel_too(crew, models):
    name, slots = "5 heads", [0, 1, 2, 3]
    ((packed,),) = crew.all([0], begin, models[name], [spec((112, 144))])
    expected = alone(crew, models[name], packed)
    crew.all(slots, use_attention, "math")
    try:
        results = crew.all(slots, run, models[name], [packed], 6, slots, "by the book")
    finally:
        crew.all(slots, use_attention, "sdpa")
    assert differs(unpack(results[0][0]), expected) <= TOLERANCE


@pytest.mark.parametrize("name", ["4 heads", "sd3.5", "pixart"])
def test_a_batch_at_different_steps_equals_its_requests_one_by_one(crew, models, name):
    images = [
        spec((112, 144), 6, seed=1),
        spec((112, 144), 9, seed=2, guidance=1.0),
        spec((144, 112), 7, seed=3),
    ]
    (packed,) = crew.all([0], begin, models[name], images[:2])
    ((rotated,),) = crew.all([0], begin, models[name], images[2:])
    expected = [alone(crew, models[name], p) for p in packed]
    (later,) = crew.all([1], run, models[name], packed[1:], 3, [1], f"{name} alone")
    for slots in ([2], [0, 1], [3, 2, 1, 0]):
        results = crew.all(
            slots, run, models[name], [packed[0], later[0]], 6, slots, f"{name}, batch of {slots}"
        )
        for result, reference in zip(results[0], expected, strict=True):
            assert differs(unpack(result), reference) <= TOLERANCE
    with pytest.raises(Failed, match="one size"):
        crew.all([0], run, models[name], [packed[0], rotated], 1, [0], f"{name}, unlike sizes")


def test_disjoint_groups_run_at_the_same_time(crew, models):
    name = "6 heads"
    packed = [crew.all([0], begin, models[name], [spec(size, seed=i)])[0] for i, size in enumerate(SIZES[:2])]
    for turn, (left, right) in enumerate([([0, 1], [2, 3]), ([3, 0], [1, 2]), ([2], [1, 0, 3])]):
        jobs = {
            slot: (run, (models[name], packed[i], 6, slots, f"disjoint {turn}"))
            for i, slots in enumerate((left, right))
            for slot in slots
        }
        results = crew.run(jobs)
        for i, slots in enumerate((left, right)):
            expected = alone(crew, models[name], packed[i][0])
            assert differs(unpack(results[slots[0]][0]), expected) <= TOLERANCE


def fail_in_step(worker: Worker, folder: str, packed: bytes, slots: list[int], meeting: str):
    """One member's own error in the middle of a step."""
    pipeline, group = worker.pipeline(folder), worker.group(1, slots, meeting)

    def out_of_memory(*_):
        raise MemoryError("no memory left")

    block = pipeline._transformer.single_transformer_blocks[0]
    handle = block.register_forward_pre_hook(out_of_memory)
    try:
        pipeline.step([unpack(packed)], group)
    finally:
        handle.remove()


def test_an_error_of_one_member_ends_the_step_for_all_and_the_group_can_be_made_anew(crew, models):
    name = "4 heads"
    ((packed,),) = crew.all([0], begin, models[name], [spec((128, 80))])
    slots = [1, 0, 2]
    jobs = {s: (run, (models[name], [packed], 6, slots, "fails")) for s in slots}
    jobs[2] = (fail_in_step, (models[name], packed, slots, "fails"))
    began = time.monotonic()
    answers = crew.run(jobs, check=False)
    # By the broken connection, not by the collectives' time-out of a minute.
    assert time.monotonic() - began < 30
    assert {s: a.kind for s, a in answers.items()} == {2: "MemoryError", 0: "GroupAborted", 1: "GroupAborted"}
    results = crew.all(slots, run, models[name], [packed], 6, slots, "fails no more")
    assert differs(unpack(results[0][0]), alone(crew, models[name], packed)) <= TOLERANCE


def run_until_killed(worker: Worker, folder: str, packed: bytes, slots: list[int], meeting: str, dies: bool):
    """Step without end; the one that dies is killed in the middle of it."""
    pipeline, group = worker.pipeline(folder), worker.group(1, slots, meeting)
    (state,) = pipeline.step([unpack(packed)], group)
    if dies:
        die(after_s=0.2)
    while True:
        (state,) = pipeline.step([state], group)


def test_survivors_of_a_killed_member_fail_at_once_and_go_on_in_a_new_epoch(crew, models):
    name, slots = "24 heads", [0, 1, 2, 3]
    ((packed,),) = crew.all([0], begin, models[name], [spec((112, 144), steps=1000)])
    jobs = {s: (run_until_killed, (models[name], packed, slots, "to be killed", s == 3)) for s in slots}
    began = time.monotonic()
    answers = crew.run(jobs, check=False)
    assert time.monotonic() - began < 30
    assert {s: a.kind for s, a in answers.items()} == dict.fromkeys((0, 1, 2), "GroupAborted") | {3: "Died"}

    ((packed,),) = crew.all([0], begin, models[name], [spec((112, 144))])
    results = crew.all([2, 0], run, models[name], [packed], 3, [2, 0], "survivors", 2)
    crew.replace(3)
    results = crew.all([3, 2, 0, 1], run, models[name], results[0], 3, [3, 2, 0, 1], "with a new one", 2)
    assert differs(unpack(results[0][0]), alone(crew, models[name], packed)) <= TOLERANCE
