"""Text encoders, denoiser and VAE apart: roles, the cache of encoded prompts, decoding in tiles."""

import dataclasses
import gc
import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from executor import profiler
from executor.builtin import SOURCE
from executor.encodings import Encodings
from executor.image import ImageSpec
from executor.latents import pack, unpack
from executor.pipelines import load
from executor.roles import DECODE, DENOISE, ENCODE, parse

IMAGE = ImageSpec("a red house under a yellow sun", 112, 144, steps=3, seed=11)


@pytest.fixture(scope="module", params=["4 heads", "sd3", "pixart"])
def folder(models, request):
    return models[request.param]


@pytest.fixture(scope="module")
def whole(folder):
    return load(folder)


def weights(pipeline) -> dict[str, int]:
    """Bytes that the pipeline's models take, by name; the meta device has none."""
    return {
        name: sum(p.nbytes for p in part.parameters() if not p.is_meta)
        for name, part in pipeline._parts.components.items()
        if isinstance(part, torch.nn.Module)
    }


# Roles.


def test_a_role_is_enough_for_its_stage_and_the_picture_is_the_same(folder, whole, group):
    encoder, denoiser, decoder = (load(folder, roles=frozenset([r])) for r in (ENCODE, DENOISE, DECODE))
    state = encoder.start(IMAGE, encoder.encode(IMAGE))
    alone = whole.start(IMAGE, whole.encode(IMAGE))
    while not state.done:
        (state,) = denoiser.step([unpack(pack(state))], group)
        (alone,) = whole.step([alone], group)
    assert torch.equal(state.latent, alone.latent)
    assert decoder.decode(state).tobytes() == whole.decode(alone).tobytes()


def test_what_no_role_needs_takes_no_memory(folder, whole):
    full = weights(whole)
    assert all(full.values())
    needed = {ENCODE: "text_encoder", DENOISE: "transformer", DECODE: "vae"}
    for role, prefix in needed.items():
        loaded = weights(load(folder, roles=frozenset([role])))
        assert loaded == {name: full[name] if name.startswith(prefix) else 0 for name in full}
    gc.collect()


def test_executors_of_different_roles_are_of_one_model(folder, whole):
    for role in (ENCODE, DENOISE, DECODE):
        apart = load(folder, roles=frozenset([role]))
        assert (apart.fingerprint, apart.limits) == (whole.fingerprint, whole.limits)


def test_steps_are_measured_without_text_encoders_and_decodings_without_a_transformer(folder, whole, group):
    denoiser = load(folder, roles=frozenset([DENOISE]))
    blank, real = denoiser.blank(IMAGE), whole.encode(IMAGE)
    assert {n: (t.shape, t.dtype) for n, t in blank.items()} == {
        n: (t.shape, t.dtype) for n, t in real.items()
    }
    (row,) = profiler.measure_steps(denoiser, group, [(64, 64)])
    assert row.seconds > 0
    decoder = load(folder, roles=frozenset([DECODE]))
    (row,) = profiler.measure_decoding(decoder, [(64, 64)])
    assert row.seconds > 0


def test_roles_are_named():
    assert parse("decode, encode") == {ENCODE, DECODE}
    with pytest.raises(ValueError, match="expected some of encode,denoise,decode, not 'sing'"):
        parse("encode,sing")
    with pytest.raises(ValueError, match="not ''"):
        parse("")


# Encoded prompts.


def test_a_prompt_is_encoded_once(whole):
    texts = []

    def encode(text):
        texts.append(text)
        return whole.encode_text(text)

    encodings = Encodings(encode, 1 << 20)
    first = whole.encode(IMAGE, encodings)
    again = whole.encode(dataclasses.replace(IMAGE, seed=5, width=64), encodings)
    assert all(torch.equal(first[name], again[name]) for name in first)
    negative = [IMAGE.negative_prompt] if whole.is_guided(IMAGE) else []
    assert texts == [IMAGE.prompt, *negative]
    # The negative prompt is shared, too.
    whole.encode(dataclasses.replace(IMAGE, prompt="a boat"), encodings)
    assert texts == [IMAGE.prompt, *negative, "a boat"]
    assert (encodings.hits, encodings.misses) == (1 + 2 * len(negative), 2 + len(negative))


def test_encoded_prompts_are_bounded_by_bytes_and_the_oldest_goes():
    size = 1000
    encodings = Encodings(lambda _: {"text": torch.zeros(size, dtype=torch.uint8)}, 3 * size)
    for text in ("a", "b", "c", "a", "d"):
        encodings(text)
    assert encodings.nbytes == 3 * size
    assert (encodings.hits, encodings.misses) == (1, 4)
    encodings("a")  # was used since
    assert encodings.hits == 2
    encodings("b")
    assert encodings.misses == 5
    none = Encodings(lambda _: {"text": torch.zeros(size)}, 0)
    none("a")
    none("a")
    assert (none.hits, none.nbytes) == (0, 0)


# Tiles.


@pytest.fixture(scope="module")
def trained():
    folder = SOURCE / "checkpoint"
    if not (folder / "model_index.json").is_file():
        pytest.skip("the built-in model is not trained")
    return load(folder)


def test_decoding_in_tiles_is_close_to_decoding_at_once(trained, group):
    image = ImageSpec("a red house under a yellow sun", 512, 384, steps=4, seed=3)
    state = trained.start(image, trained.encode(image))
    while not state.done:
        (state,) = trained.step([state], group)
    pictures, tiles = {}, {}
    decode = trained._parts.vae.decoder.forward
    for side in (0, 512, 256, 130):
        shapes = tiles[side] = []
        trained._parts.vae.decoder.forward = lambda z, shapes=shapes: (
            shapes.append(tuple(z.shape[2:])) or decode(z)
        )
        trained.decoding_tile = side
        pictures[side] = np.asarray(trained.decode(state)).astype(int)
    trained._parts.vae.decoder.forward = decode
    trained.decoding_tile = 0
    assert tiles[0] == tiles[512] == [(48, 64)]
    assert np.array_equal(pictures[0], pictures[512])
    for side, most in ((256, 32), (130, 16)):
        assert len(tiles[side]) > 1
        assert max(max(shape) for shape in tiles[side]) <= most
        assert pictures[side].shape == pictures[0].shape
        # Each tile is normalised by itself, which shifts its brightness a little.
        psnr = 10 * np.log10(255**2 / ((pictures[side] - pictures[0]) ** 2).mean())
        print(f"tiles of {side}: {psnr:.1f} dB")
        assert 24 < psnr < 60


# Previews.


def likeness(preview, picture) -> float:
    """Correlation of a preview with the picture at its size."""
    small = np.asarray(picture.resize(preview.size, Image.Resampling.BOX)).astype(float)
    return float(np.corrcoef(small.ravel(), np.asarray(preview).astype(float).ravel())[0, 1])


def test_a_preview_is_small_and_like_the_picture_long_before_the_end(trained, group):
    image = ImageSpec("a red house under a yellow sun", 256, 192, steps=10, seed=3)
    trained.prepare_previews()
    states = [trained.start(image, trained.encode(image))]
    while not states[-1].done:
        states += trained.step([states[-1]], group)
    picture = trained.decode(states[-1])
    found = [likeness(trained.preview(a, b), picture) for a, b in itertools.pairwise(states)]
    print("likeness by step:", " ".join(f"{value:.2f}" for value in found))
    assert trained.preview(states[0], states[1]).size == (32, 24)
    assert found[4] > 0.8
    # One linear map from the latent's channels to colours gets no nearer than about 0.9.
    assert found[-1] > 0.85
    # Better than the latent itself, which is still noisy then.
    noisy = trained._sketch.draw(trained.image_latent(states[3]))
    assert found[2] > likeness(noisy, picture) + 0.1


def test_every_family_draws_previews_where_it_has_a_vae(folder, whole, group):
    whole.prepare_previews()
    before = whole.start(IMAGE, whole.encode(IMAGE))
    (after,) = whole.step([before], group)
    preview = whole.preview(before, after)
    assert preview.size == (IMAGE.width // 8, IMAGE.height // 8)
    denoiser = load(folder, roles=frozenset([DENOISE]))
    denoiser.prepare_previews()
    assert denoiser.preview(before, after) is None
