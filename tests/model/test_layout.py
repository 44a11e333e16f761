"""The random checkpoint is a real FLUX checkpoint: the stock pipeline loads it and makes an image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from safetensors.torch import load_file

from model.layout import TEXT_LENGTH, rope_axes, write_checkpoint
from model.tokenizers import WORDS, clip_tokenizer, t5_tokenizer

TINY = {"double_blocks": 1, "single_blocks": 1, "head_dim": 8, "text_width": 16, "vae_channels": (8,) * 4}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{file.parent.name}.{name}": tensor
        for file in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def test_stock_pipeline_loads_the_default_and_makes_an_image(tmp_path: Path) -> None:
    pipeline = FluxPipeline.from_pretrained(write_checkpoint(tmp_path, seed=0), local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline(
        "a red house under a yellow sun",
        height=128,
        width=192,
        num_inference_steps=2,
        max_sequence_length=pipeline.tokenizer_2.model_max_length,
        generator=torch.Generator().manual_seed(1),
    ).images[0]
    assert image.size == (192, 128)
    assert np.asarray(image).std() > 0


def test_default_is_small_enough_in_half_precision(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, seed=0, dtype=torch.float16)
    assert sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()) <= 16_000_000


@pytest.mark.parametrize(("heads", "text_length"), [(4, 13), (6, 16), (3, 24)])
def test_odd_shapes(tmp_path: Path, heads: int, text_length: int) -> None:
    folder = write_checkpoint(tmp_path, seed=1, heads=heads, text_length=text_length, **TINY)
    pipeline = FluxPipeline.from_pretrained(folder, local_files_only=True)
    assert pipeline.transformer.config.num_attention_heads == heads
    assert pipeline.tokenizer_2.model_max_length == text_length


def test_guidance_input(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, seed=1, guidance_embeds=True, **TINY)
    pipeline = FluxPipeline.from_pretrained(folder, local_files_only=True)
    assert pipeline.transformer.config.guidance_embeds


def test_the_seed_decides_the_weights(tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, again, other = (
        weights(write_checkpoint(tmp_path / name, seed=seed, **TINY))
        for name, seed in (("first", 3), ("again", 3), ("other", 4))
    )
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert torch.equal(before, torch.random.get_rng_state())


def test_bad_shapes_are_named() -> None:
    with pytest.raises(ValueError, match="head_dim must be"):
        rope_axes(10)
    assert sum(rope_axes(40)) == 40
    assert all(axis % 2 == 0 for axis in rope_axes(24))


def test_every_known_word_is_one_token_of_each_tokenizer() -> None:
    clip, t5 = clip_tokenizer(77), t5_tokenizer(TEXT_LENGTH)
    for word in WORDS:
        assert len(clip(word).input_ids) == 3, word
        assert len(t5(word).input_ids) == 2, word
        assert t5.unk_token_id not in t5(word.capitalize()).input_ids, word


def test_unknown_words_do_not_end_the_prompt_early() -> None:
    clip, t5 = clip_tokenizer(77), t5_tokenizer(TEXT_LENGTH)
    prompt = "a zebra près d'un 木 red house"
    assert clip(prompt).input_ids.count(clip.eos_token_id) == 1
    assert t5.convert_ids_to_tokens(t5("a zebra red").input_ids) == ["▁a", "<unk>", "▁red", "</s>"]


def test_the_numbers_of_the_tokens_are_the_same_every_time() -> None:
    assert clip_tokenizer(77).get_vocab() == clip_tokenizer(77).get_vocab()
    assert t5_tokenizer(TEXT_LENGTH).get_vocab() == t5_tokenizer(TEXT_LENGTH).get_vocab()
