"""The pieces of the training are what they claim: packing, sampling of tokens, attention, resuming."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from hypothesis import given
from hypothesis import strategies as st

from model import train_flow
from model.attention import BlockAttention, ExplicitAttention
from model.latents import TOKEN_PIXELS, LatentSet, LatentSets, foreground, foveate, image_ids, pack, unpack
from model.layout import build_transformer, build_vae
from model.progress import Stage, set_learning_rate
from model.scenes import Jitter, Scene
from model.train_flow import (
    FAR_TOKENS,
    GROUPS,
    PHASES,
    SHAPES,
    SIZES,
    SQUARES,
    UNSEEN,
    current_phase,
    noise_levels,
    noise_shift,
    pick_batch,
    sample_tokens,
    shapes,
    zero_start,
)
from model.train_vae import unit_latents

grids = st.tuples(st.integers(1, 5), st.integers(1, 5))


@given(grid=grids, channels=st.integers(1, 4))
def test_packing_is_that_of_the_pipeline(grid: tuple[int, int], channels: int) -> None:
    rows, columns = grid
    latents = torch.randn(2, channels, 2 * rows, 2 * columns)
    packed = pack(latents)
    assert torch.equal(packed, FluxPipeline._pack_latents(latents, 2, channels, 2 * rows, 2 * columns))
    assert torch.equal(unpack(packed, rows, columns), latents)
    ids = FluxPipeline._prepare_latent_image_ids(2, rows, columns, torch.device("cpu"), torch.float32)
    assert torch.equal(image_ids(rows, columns), ids)


@given(
    grid=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    stride=st.integers(1, 4),
    window=st.integers(1, 8),
    seed=st.integers(0, 99),
)
def test_a_sample_stands_for_every_token(grid: tuple[int, int], stride: int, window: int, seed: int) -> None:
    rows, columns = grid
    sample = foveate(rows, columns, window, stride, torch.Generator().manual_seed(seed))
    assert len(sample.places.unique()) == len(sample.places)
    assert sample.places.max() < rows * columns
    seen_whole = min(window, rows) * min(window, columns)
    assert (sample.counts == 1).sum() >= seen_whole
    if (sample.counts > 1).any():
        assert sample.counts.sum().item() == pytest.approx(rows * columns)
    if window >= max(rows, columns):
        assert len(sample.places) == rows * columns
        assert sample.attention_bias(3) is None


def test_every_token_is_seen_as_often_as_any_other() -> None:
    """Also those of the cells that the edge of the grid cuts; but the corners always."""
    generator, times = torch.Generator().manual_seed(0), torch.zeros(35)
    for _ in range(4000):
        times[foveate(5, 7, 1, 3, generator).places] += 1
    # One as the window, or else one in the nine of its cell.
    expected = 4000 * (1 / 35 + 34 / 35 / 9)
    corners = torch.zeros(5, 7, dtype=torch.bool)
    corners[::4, ::6] = True
    assert (times[corners.flatten()] == 4000).all()
    assert (times[~corners.flatten()] - expected).abs().max() < 0.2 * expected


@pytest.mark.parametrize(("centre", "top", "left"), [((9, 5), 7, 3), ((0, 0), 0, 0), ((15, 19), 12, 16)])
def test_the_window_lies_around_its_centre_inside_the_picture(
    centre: tuple[int, int], top: int, left: int
) -> None:
    sample = foveate(16, 20, 4, 9, torch.Generator().manual_seed(0), centre)
    seen = torch.zeros(16 * 20, dtype=torch.bool)
    seen[sample.places[sample.counts == 1]] = True
    assert seen.view(16, 20)[top : top + 4, left : left + 4].all()
    assert seen.sum() <= 16 + 4


def test_focused_steps_see_the_object_of_every_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_flow, "FOCUSED", 1.0)
    sides = ("left", "right")
    scenes = [Scene("day", "sand", None, "car", "red", side) for side in sides * 2]
    weights = torch.stack([1 + foreground(scene, Jitter(), 24, 24) for scene in scenes])
    latents = LatentSet(24, 24, scenes, torch.zeros(4, 24 * 24, 16), weights)
    generator, seen = torch.Generator().manual_seed(0), set()
    for seed in range(8):
        picked, sample = pick_batch(latents, 12, np.random.default_rng(seed), generator)
        [side] = {scenes[index].side for index in picked.tolist()}
        seen.add(side)
        near = sample.places[sample.counts == 1]
        assert (weights[picked][:, near] > 1).sum(1).min() >= 12
    assert seen == set(sides)


def test_attention_to_a_sample_stands_for_attention_to_all() -> None:
    """Where all image tokens are alike, the corrected softmax gives the text the weight it has among all."""
    text, text_score, image_score = 3, 0.7, -0.2
    sample = foveate(16, 16, 4, 4, torch.Generator().manual_seed(0))
    bias = sample.attention_bias(text)
    assert bias is not None
    scores = torch.tensor([text_score] * text + [image_score] * len(sample.places))
    on_text = (scores + bias[:text]).softmax(-1)[:, :text].sum(-1)
    full = torch.tensor([text_score] * text + [image_score] * 256).softmax(-1)[:text].sum()
    torch.testing.assert_close(on_text, full.expand_as(on_text))
    assert not bias.diagonal().any()


def test_explicit_attention_equals_the_stock_processor() -> None:
    torch.manual_seed(0)
    model = build_transformer(heads=2, head_dim=8, double_blocks=1, single_blocks=1, text_width=16)
    inputs = {
        "hidden_states": torch.randn(2, 6, 16),
        "encoder_hidden_states": torch.randn(2, 5, 16),
        "pooled_projections": torch.randn(2, 16),
        "timestep": torch.rand(2),
        "img_ids": image_ids(2, 3),
        "txt_ids": torch.zeros(5, 3),
        "joint_attention_kwargs": {"attention_mask": torch.randn(11, 11)},
        "return_dict": False,
    }
    outputs = []
    for processor in (FluxAttnProcessor(), ExplicitAttention()):
        model.set_attn_processor(processor)
        outputs.append(model(**inputs)[0])
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_attention_in_blocks_equals_attention_to_a_rounding() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(3, 2 * BlockAttention.QUERIES + 5, 8) for _ in range(3))
    exact = ExplicitAttention().attend(query * 8**-0.5, key, value, None)
    torch.testing.assert_close(
        BlockAttention().attend(query * 8**-0.5, key, value, None), exact, atol=0.02, rtol=0
    )


def test_a_zero_started_transformer_says_zero_and_can_learn() -> None:
    model = build_transformer(heads=2, head_dim=8, double_blocks=1, single_blocks=1, text_width=16)
    zero_start(model)
    out = model(
        hidden_states=torch.randn(1, 4, 16),
        encoder_hidden_states=torch.randn(1, 3, 16),
        pooled_projections=torch.randn(1, 16),
        timestep=torch.rand(1),
        img_ids=image_ids(2, 2),
        txt_ids=torch.zeros(3, 3),
        return_dict=False,
    )[0]
    assert not out.any()
    (out - 1).square().mean().backward()
    assert model.proj_out.bias.grad.abs().max() > 0


def test_unit_latents_change_the_scale_and_not_the_picture() -> None:
    torch.manual_seed(0)
    vae = build_vae(channels=(8, 8, 8, 8)).eval()
    pictures = torch.rand(4, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        before = vae.decoder.conv_in(vae.encode(pictures).latent_dist.mean)
        unit_latents(vae, pictures)
        latents = vae.encode(pictures).latent_dist
        after = vae.decoder.conv_in(latents.mean)
    torch.testing.assert_close(latents.mean.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.mean.std((0, 2, 3)), torch.ones(4), atol=1e-4, rtol=0)
    assert latents.std.max() < 0.01
    # The border differs, by the zeros that pad it.
    torch.testing.assert_close(before[..., 1:-1, 1:-1], after[..., 1:-1, 1:-1], atol=1e-4, rtol=1e-4)


def test_foreground_marks_the_side_of_the_object() -> None:
    marks = foreground(Scene("day", "sand", None, "car", "red", "left"), Jitter(), 8, 8).view(8, 8)
    assert marks[:, :4].sum() > 4
    assert not marks[:, 5:].any()
    assert not foreground(Scene("day", "sand"), Jitter(), 8, 8).any()


def test_noise_levels_are_shifted_up_with_the_size() -> None:
    assert noise_shift(256) == pytest.approx(0.5)
    assert noise_shift(4096) == pytest.approx(1.15)
    few, many = (
        noise_levels(2000, tokens, torch.Generator().manual_seed(0)).median() for tokens in (64, 4096)
    )
    assert 0.5 < few < many < 0.9
    # The scheduler's own shift of the middle level.
    assert many.item() == pytest.approx(math.exp(1.15) / (math.exp(1.15) + 1), abs=0.03)


def test_phases_pick_sizes_by_their_shares_and_steps_stay_small() -> None:
    generator = torch.Generator().manual_seed(0)
    for phase in PHASES:
        assert sum(share for *_, share in phase.mix) == pytest.approx(1)
        random = np.random.default_rng(0)
        picked = [phase.pick(random) for _ in range(2000)]
        for size, window, share in phase.mix:
            sizes = GROUPS.get(size, (size,))
            drawn = [one for one in picked if one[0] in sizes and one[1] == window]
            # A size can also come from another group with the same window.
            assert len(drawn) / 2000 >= share - 0.04
            for name in sizes:
                assert name in SIZES
                width, height = map(int, name.split("x"))
                rows, columns = height // TOKEN_PIXELS, width // TOKEN_PIXELS
                sample = sample_tokens(rows, columns, window, generator)
                assert len(sample.places) <= window**2 + 1.5 * FAR_TOKENS + 4
    assert current_phase(PHASES, 0.0) is PHASES[0]
    assert current_phase(PHASES, 0.999) is PHASES[-1]


def test_shapes_are_spread_and_leave_out_the_squares_and_the_tests() -> None:
    some = shapes(SHAPES)
    assert len(set(some)) == SHAPES
    assert shapes(9) == some[:9]
    assert not {f"{width}x{height}" for width, height in some} & {*SQUARES, *UNSEEN}
    for width, height in some:
        assert width % TOKEN_PIXELS == height % TOKEN_PIXELS == 0
        assert 96 <= width <= 1024
        assert 96 <= height <= 1024
        assert 0.45 <= width / height <= 2.2
    # Every quarter of areas has wide ones and high ones.
    by_area = sorted(some, key=lambda size: size[0] * size[1])
    for start in range(0, SHAPES, SHAPES // 4):
        ratios = [width / height for width, height in by_area[start : start + SHAPES // 4]]
        assert min(ratios) < 0.7
        assert max(ratios) > 1.4


def test_latents_come_back_from_their_file(tmp_path: Path) -> None:
    vae = build_vae(channels=(8, 8, 8, 8)).eval()
    made = LatentSets(tmp_path, vae, {"48x32": 3}, seed=1)["48x32"]
    assert made.tokens.shape == (3, 6, 16)
    assert made.weights.shape == (3, 6)
    [file] = tmp_path.iterdir()
    written = file.stat().st_mtime_ns
    read = LatentSets(tmp_path, vae, {"48x32": 3}, seed=1)["48x32"]
    assert file.stat().st_mtime_ns == written
    assert read.scenes == made.scenes
    assert torch.equal(read.tokens, made.tokens)
    assert torch.equal(read.weights, made.weights)
    assert (read.rows, read.columns) == (2, 3)


def fit(folder: Path, steps: int, stop: int) -> torch.Tensor:
    """Fit a line for `steps` steps, but walk away after `stop`."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    optimiser = torch.optim.AdamW(model.parameters())
    stage = Stage("line", folder, steps, save_every=0.0, report_every=5)
    stage.resume(model=model, optimiser=optimiser)
    for step in stage.run():
        if step == stop:
            break
        x = torch.from_numpy(np.random.default_rng(step).normal(size=(8, 3)).astype(np.float32))
        set_learning_rate(optimiser, stage.learning_rate(0.1, warm_up=3))
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        stage.log(loss=loss.item())
    return model.weight.detach()


def test_a_killed_stage_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole", 12, 99)
    fit(tmp_path / "parts", 12, 7)
    assert torch.equal(fit(tmp_path / "parts", 12, 99), whole)
    assert len((tmp_path / "parts" / "line.jsonl").read_text().splitlines()) == 3
