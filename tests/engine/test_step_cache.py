"""Outputs that are used again: deterministic for a request, whatever the schedule, place and degree."""

import dataclasses

import pytest
import torch
from drawing import draw

from bench.crew import Crew, Worker
from executor.image import ImageSpec
from executor.latents import pack, pack_latent, unpack, unpack_latent
from executor.pipelines import load
from executor.registration import model_info
from tetriserve.step_cache import computed

IMAGE = ImageSpec("a red house under a yellow sun", 112, 144, steps=10, seed=11, guidance=3.0)
EVERY = 2


@pytest.mark.parametrize("name", ["4 heads", "sd3", "pixart"])
def test_only_some_steps_are_computed_and_the_picture_changes_only_with_the_cache_on(models, group, name):
    pipeline, other = load(models[name]), load(models[name])
    other.step_cache = EVERY
    calls = []
    predict = other.predict
    other.predict = lambda passes, shard: (calls.append(len(passes)), predict(passes, shard))[1]
    exact, cached = draw(pipeline, IMAGE, group), draw(other, IMAGE, group)
    assert len(calls) == len(computed(IMAGE.steps, EVERY)) < IMAGE.steps
    assert not torch.equal(exact.latent, cached.latent)
    assert cached.output is None, "nothing is kept beyond its use"
    other.step_cache = 1
    assert torch.equal(draw(other, IMAGE, group).latent, exact.latent)


def test_the_output_travels_with_hand_over_and_checkpoint(models, group):
    pipeline = load(models["4 heads"])
    pipeline.step_cache = EVERY
    expected = draw(pipeline, IMAGE, group)
    state, carried = pipeline.start(IMAGE, pipeline.encode(IMAGE)), 0
    while not state.done:
        (state,) = pipeline.step([state], group)
        carried += state.output is not None
        packed = unpack(pack(state))
        resumed = unpack_latent(pack_latent(state), IMAGE, state.condition)
        for copy in (packed, resumed):
            assert copy.nbytes == state.nbytes
        state = resumed if state.step % 2 else packed
    assert torch.equal(state.latent, expected.latent)
    assert carried == IMAGE.steps - len(computed(IMAGE.steps, EVERY))
    lost = dataclasses.replace(expected, step=next(s for s in range(10) if s not in computed(10, EVERY)))
    with pytest.raises(ValueError, match="the last output is not held"):
        pipeline.step([lost], group)


def steps(worker: Worker, model: str, packed: list[bytes], count: int, slots: list[int], meeting: str):
    pipeline, group = worker.pipeline(model), worker.group(1, slots, meeting)
    pipeline.step_cache = EVERY
    try:
        states = [unpack(state) for state in packed]
        for _ in range(count):
            states = pipeline.step(states, group)
        return [pack(state) for state in states]
    finally:
        pipeline.step_cache = 1  # others share this worker's pipeline


def test_degrees_and_places_and_batches_do_not_show(crew: Crew, models, group):
    """The two requests of the batch do not compute the same steps."""
    model = models["4 heads"]
    pipeline = load(model)
    pipeline.step_cache = EVERY
    images = [IMAGE, dataclasses.replace(IMAGE, seed=3, steps=13)]
    expected = [draw(pipeline, image, group).latent for image in images]
    packed = [pack(pipeline.start(image, pipeline.encode(image))) for image in images]
    (first,) = crew.all([2], steps, model, packed[1:], 3, [2], "cache alone")
    packed[1], at = first[0], 0
    for slots, count in (([0, 1], 3), ([3], 2), ([2, 0], 1), ([1, 2, 3, 0], 4)):
        packed = crew.all(slots, steps, model, packed, count, slots, f"cache {at}")[0]
        at += count
    for state, latent in zip(packed, expected, strict=True):
        assert unpack(state).done
        assert (unpack(state).latent - latent).abs().max() <= 1e-5


def test_executors_tell_their_cache(models, tmp_path):
    pipeline = load(models["4 heads"])
    plain = model_info(pipeline, tmp_path)
    pipeline.step_cache = 3
    info = model_info(pipeline, tmp_path)
    assert (plain.step_cache, info.step_cache) == (1, 3)
    assert info.fingerprint != plain.fingerprint
