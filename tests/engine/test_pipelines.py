"""Model families against diffusers' own pipelines, and what they refuse to draw."""

import dataclasses
import inspect
import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from drawing import draw
from PIL import ImageChops
from small_models import PIXART, SD3, write

from executor import attention
from executor.image import ImageSpec
from executor.pipelines import ModelError, Pipeline, base, load

IMAGE = ImageSpec("a red house under a yellow sun", 112, 144, steps=5, seed=11)


@pytest.fixture(scope="module")
def loaded(models) -> Callable[[str], Pipeline]:
    """The small model of a name, loaded once."""
    return cache(lambda name: load(models[name]))


@pytest.fixture(scope="module")
def four(loaded) -> Pipeline:
    return loaded("4 heads")


@pytest.fixture(scope="module")
def six(loaded) -> Pipeline:
    return loaded("6 heads")


def stock(folder: str, image: ImageSpec, output: str, dtype: torch.dtype = torch.float32):
    """The same request as diffusers' own pipeline does it."""
    index = json.loads((Path(folder) / "model_index.json").read_text())
    left_out = {name: None for name, source in index.items() if source == [None, None]}
    pipeline = DiffusionPipeline.from_pretrained(folder, dtype=dtype, **left_out)
    pipeline.set_progress_bar_config(disable=True)
    taken = inspect.signature(pipeline.__call__).parameters
    t5, options = {
        "FluxPipeline": ("tokenizer_2", {}),
        "StableDiffusion3Pipeline": ("tokenizer_3", {}),
        "PixArtSigmaPipeline": ("tokenizer", {"clean_caption": False, "use_resolution_binning": False}),
    }[type(pipeline).__name__]
    if tokenizer := getattr(pipeline, t5):
        options["max_sequence_length"] = tokenizer.model_max_length
    if image.guidance is not None:
        options["guidance_scale"] = image.guidance
    if image.negative_prompt and "negative_prompt" in taken:
        options["negative_prompt"] = image.negative_prompt
    return pipeline(
        image.prompt,
        width=image.width,
        height=image.height,
        num_inference_steps=image.steps,
        generator=torch.Generator("cpu").manual_seed(image.seed),
        output_type=output,
        **options,
    ).images[0]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("4 heads", {}),
        ("4 heads", {"guidance": 1.0, "seed": 2**64 - 1, "steps": 1}),
        ("4 heads", {"prompt": "", "width": 16, "height": 16}),
        ("4 heads", {"prompt": "a very long prompt " * 40, "width": 256}),
        ("6 heads", {"width": 208, "height": 80}),
        *[
            (name, changes)
            for name in (*SD3, *PIXART)
            for changes in (
                {},
                {"guidance": 1.0},
                {"guidance": 0.0, "negative_prompt": "not heeded"},
                {"guidance": 3.0, "negative_prompt": "a dark boat", "seed": 2**64 - 1},
                {"prompt": "", "width": 16, "height": 16, "steps": 1},
                {"prompt": "a very long prompt " * 40, "width": 384, "height": 32},
            )
        ],
    ],
)
def test_degree_1_is_the_pipeline_of_diffusers(models, loaded, group, name, changes):
    image = dataclasses.replace(IMAGE, **changes)
    pipeline = loaded(name)
    pipeline.check(image)
    state = draw(pipeline, image, group)
    assert state.latent.shape == pipeline.latent_shape(image.width, image.height)
    # Classifier-free guidance multiplies what differs by its scale; a pixel may be rounded otherwise.
    tolerance, levels = (1e-5, 0) if pipeline.family == "flux" else (1e-4, 1)
    latent = state.latent if pipeline.family == "flux" else pipeline.image_latent(state)
    assert (latent[0] - stock(models[name], image, "latent")).abs().max() <= tolerance
    picture = pipeline.decode(state)
    assert picture.size == (image.width, image.height)
    differs = ImageChops.difference(picture, stock(models[name], image, "pil"))
    assert max(most for _, most in differs.getextrema()) <= levels


def test_pixart_with_the_noise_that_it_was_trained_for(tmp_path, group):
    folder = write(tmp_path / "model", "pixart", beta_end=0.02)
    pipeline = load(folder)
    for steps in (5, 16):
        image = dataclasses.replace(IMAGE, steps=steps)
        latent = pipeline.image_latent(draw(pipeline, image, group))[0]
        expected = stock(folder, image, "latent")
        assert (latent - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_pixart_under_the_name_that_its_transformer_was_published_with(tmp_path, models, loaded):
    folder = Path(shutil.copytree(models["pixart"], tmp_path / "model"))
    for file, old, new in (
        ("model_index.json", "PixArtTransformer2DModel", "Transformer2DModel"),
        ("transformer/config.json", "PixArtTransformer2DModel", "Transformer2DModel"),
    ):
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new))
    config = json.loads((folder / "transformer/config.json").read_text())
    (folder / "transformer/config.json").write_text(json.dumps(config | {"norm_type": "ada_norm_single"}))
    assert load(folder).heads == loaded("pixart").heads


@pytest.mark.parametrize("name", ["4 heads", "sd3.5", "pixart"])
def test_bfloat16_is_nearer_to_float32_than_diffusers_comes(models, loaded, group, name):
    exact = draw(loaded(name), IMAGE, group).latent
    pipeline = load(models[name], dtype=torch.bfloat16)
    state = draw(pipeline, IMAGE, group)
    # Steps, and what becomes pixels, are not rounded.
    assert state.latent.dtype == torch.float32
    latent = pipeline.image_latent(state) if name == "pixart" else state.latent
    theirs = stock(models[name], IMAGE, "latent", torch.bfloat16)
    exact = exact[:, : latent.shape[1]]
    error, their_error = ((x - exact).square().mean() for x in (latent, theirs))
    assert 0 < error < their_error


def test_a_seed_is_the_same_noise_however_often(four):
    condition = four.encode(IMAGE)
    torch.manual_seed(1)
    one = four.start(IMAGE, condition).latent
    torch.manual_seed(2)
    assert torch.equal(one, four.start(IMAGE, condition).latent)
    other = dataclasses.replace(IMAGE, seed=12)
    assert not torch.equal(one, four.start(other, condition).latent)


def test_a_finished_state_takes_no_more_steps(four, group):
    state = draw(four, dataclasses.replace(IMAGE, steps=1), group)
    with pytest.raises(ValueError, match="all 1 steps are done"):
        four.step([state], group)
    with pytest.raises(ValueError, match="one size"):
        four.step([], group)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 100}, "width must be a multiple of 16 from 16 to 4096, not 100"),
        ({"height": 0}, "height must be a multiple of 16"),
        ({"height": -16}, "height must be a multiple of 16"),
        ({"width": 4112}, "width must be a multiple of 16 from 16 to 4096, not 4112"),
        ({"width": 4096, "height": 2048}, r"at most 16384 image tokens, not 32768 \(4096x2048\)"),
        ({"steps": 0}, "steps must be from 1 to 1000, not 0"),
        ({"steps": 1001}, "steps must be from 1 to 1000"),
        ({"seed": -1}, "seed must be from 0 to 18446744073709551615, not -1"),
        ({"seed": 2**64}, "seed must be from 0"),
        ({"guidance": -0.5}, "guidance must be from 0 to 100, not -0.5"),
        ({"guidance": float("nan")}, "guidance must be from 0 to 100, not nan"),
    ],
)
def test_what_cannot_be_drawn_is_refused_by_field(four, changes, message):
    with pytest.raises(ValueError, match=message):
        four.check(dataclasses.replace(IMAGE, **changes))


def test_what_is_not_heeded_is_warned_of(four, six):
    guided, distilled = four, six
    assert guided.check(dataclasses.replace(IMAGE, guidance=2.0)) == []
    assert distilled.check(dataclasses.replace(IMAGE, guidance=2.0)) == [
        "guidance is ignored: this model has it built in"
    ]
    long = dataclasses.replace(IMAGE, prompt="sun " * 100)
    (cut,) = [w for w in guided.check(long) if "T5" in w]
    assert "the T5 encoder reads 13" in cut
    assert any("the CLIP encoder reads 77" in w for w in guided.check(long))
    assert distilled.check(dataclasses.replace(IMAGE, prompt="sun " * 10)) == []


def test_what_a_negative_prompt_comes_to(loaded):
    flux, sd3, pixart = (loaded(name) for name in ("4 heads", "sd3", "pixart"))
    negative = dataclasses.replace(IMAGE, prompt="a boat", negative_prompt="sun " * 100)
    assert flux.check(negative) == ["the negative prompt is ignored: this model takes none"]
    assert not flux.is_guided(negative)
    for pipeline in (sd3, pixart):
        assert pipeline.is_guided(negative)
        warnings = pipeline.check(negative)
        assert warnings
        assert all("the negative prompt is cut" in warning for warning in warnings)
        for guidance in (0.0, 1.0):
            unguided = dataclasses.replace(negative, guidance=guidance)
            assert pipeline.check(unguided) == ["the negative prompt is ignored: guidance is not above 1"]
            assert pipeline.encode(unguided).keys() == pipeline.encode_text("a boat").keys()
    assert (sd3.limits.default_guidance, pixart.limits.default_guidance) == (7.0, 4.5)


def test_limits_and_fingerprint_follow_the_model(loaded, four, six, tmp_path):
    assert (four.family, four.heads, four.limits.max_prompt_tokens) == ("flux", 4, 13)
    assert (six.heads, six.limits.default_guidance) == (6, None)
    sd3, pixart = loaded("sd3.5, 5 heads"), loaded("pixart")
    assert (sd3.family, sd3.heads, sd3.limits.max_prompt_tokens) == ("sd3", 5, 9)
    assert (pixart.family, pixart.heads, pixart.limits.max_prompt_tokens) == ("pixart", 4, 11)
    assert len({p.fingerprint for p in (four, six, sd3, pixart)}) == 4
    for name in ("4 heads", "sd3.5", "pixart"):
        other = load(write(tmp_path / name, name, seed=9))
        assert other.fingerprint == loaded(name).fingerprint


@pytest.mark.parametrize("name", ["4 heads", "sd3", "pixart"])
def test_sizes_are_those_of_the_family(loaded, name):
    pipeline = loaded(name)
    # The scheduler's profile counts a token for 16 x 16 pixels.
    assert pipeline.limits.size_multiple == 16
    most = pipeline.limits.max_side
    assert pipeline.check(dataclasses.replace(IMAGE, prompt="a boat", width=most, height=16)) == []
    for side in (0, 8, 24, most + 16):
        with pytest.raises(
            ValueError, match=f"height must be a multiple of 16 from 16 to {most}, not {side}"
        ):
            pipeline.check(dataclasses.replace(IMAGE, height=side))
    with pytest.raises(ValueError, match="steps must be from 1 to 1000, not 1001"):
        pipeline.check(dataclasses.replace(IMAGE, steps=1001))


def test_sd3_draws_as_far_as_it_has_positions(loaded):
    assert loaded("sd3").limits.max_side == 24 * 16


@pytest.mark.parametrize("name", ["4 heads", "sd3", "pixart"])
def test_latents_of_another_model_or_size_are_refused(loaded, name):
    pipeline = loaded(name)
    state = pipeline.start(IMAGE, pipeline.encode(IMAGE))
    assert pipeline.checked(state) is state
    for latent in (state.latent[..., 1:], state.latent[0]):
        with pytest.raises(ValueError, match="this model has"):
            pipeline.checked(dataclasses.replace(state, latent=latent))


@pytest.mark.parametrize("changes", [{"t5": False}, {"dynamic_shifting": True}])
def test_variants_of_sd3_are_the_pipeline_of_diffusers(tmp_path, group, changes):
    folder = write(tmp_path / "model", "sd3.5", **changes)
    pipeline = load(folder)
    image = dataclasses.replace(IMAGE, steps=3, negative_prompt="a boat")
    assert pipeline.check(image) == []
    state = draw(pipeline, image, group)
    assert (state.latent[0] - stock(folder, image, "latent")).abs().max() <= 1e-4


def test_attention_kernels_that_do_not_work_here_are_refused_with_those_that_do():
    for name, why in {
        "cudnn": "needs a CUDA device",
        "flash": "needs a CUDA device",
        "sage": "is unknown",
    }.items():
        with pytest.raises(ValueError, match=f"attention '{name}' {why}.*; here there are sdpa, math$"):
            attention.use_backend(name, "cpu", torch.float32)
    assert attention.backend() == "sdpa"


def test_a_package_that_is_not_installed_is_named():
    for name, package in {"flash": "flash_attn", "flash3": "flash_attn_interface"}.items():
        with pytest.raises(ValueError, match=f"needs the package {package}, which is not installed"):
            attention._find(name, torch.device("cuda"), torch.bfloat16)
    with pytest.raises(ValueError, match=r"needs bfloat16, not torch\.float32"):
        attention._find("cudnn", torch.device("cuda"), torch.float32)


def test_a_kernel_that_computes_something_else_is_refused(monkeypatch):
    def no_scale(query, key, value, want_lse):
        return attention._math(2 * query, key, value, want_lse)

    monkeypatch.setattr(attention, "_find", lambda *_: no_scale)
    with pytest.raises(ValueError, match=r"does not work on cpu with torch\.float32"):
        attention.use_backend("cudnn", "cpu", torch.float32)


def test_attention_by_the_book_draws_the_same_picture(models, four, group):
    expected = draw(four, IMAGE, group).latent
    try:
        found = draw(load(models["4 heads"], attention="math"), IMAGE, group).latent
    finally:
        attention.use_backend("sdpa", "cpu", torch.float32)
    assert 0 < (found - expected).abs().max() <= 1e-5


def test_families_register_themselves():
    assert base.loader_for("FluxPipeline")
    with pytest.raises(ModelError, match="unknown model family"):
        base.loader_for("Unknown")
