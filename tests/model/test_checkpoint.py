"""The weights that are shipped: whole, small, and they draw what the prompt says."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from diffusers import FluxPipeline

import model
from model.captions import Caption, held_out_captions, with_unknown_words
from model.checker import Score, score
from model.evaluate import evaluate, load, make_pictures
from model.scenes import Array
from model.train_flow import UNSEEN

FOLDER = Path(model.__file__).parent / "checkpoint"
CAPTIONS = held_out_captions(10, seed=11)

pytestmark = pytest.mark.skipif(not (FOLDER / "model_index.json").exists(), reason="no weights are shipped")


@pytest.fixture(scope="module")
def pipeline() -> FluxPipeline:
    return load(FOLDER)


@pytest.fixture(scope="module")
def drawn(pipeline: FluxPipeline) -> tuple[Score, list[Array]]:
    return evaluate(pipeline, CAPTIONS, 256, 256, steps=12)


def test_the_files_are_the_ones_that_were_written() -> None:
    lines = (FOLDER / "SHA256SUMS").read_text().splitlines()
    sums = {name: digest for digest, name in (line.split("  ") for line in lines)}
    files = {file.relative_to(FOLDER).as_posix() for file in FOLDER.rglob("*") if file.is_file()}
    assert sums.keys() == files - {"SHA256SUMS"}
    for name, digest in sums.items():
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == digest, name


def test_at_most_16_megabytes() -> None:
    assert sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) <= 16_000_000


def test_scenes_never_trained_on_are_drawn_as_said(drawn: tuple[Score, list[Array]]) -> None:
    assert drawn[0].share() >= 0.8, drawn[0].shares()


def test_the_pictures_fit_their_own_captions_and_no_others(drawn: tuple[Score, list[Array]]) -> None:
    wrong = score(drawn[1], CAPTIONS[1:] + CAPTIONS[:1])
    assert wrong.share() < 0.5


def test_unknown_words_do_no_harm(pipeline: FluxPipeline) -> None:
    random = np.random.default_rng(0)
    strange = [
        Caption(with_unknown_words(made.text, random), made.scene, made.statements) for made in CAPTIONS
    ]
    assert evaluate(pipeline, strange, 256, 256, steps=12)[0].share() >= 0.75


def test_a_size_never_trained_on_is_drawn_as_said(pipeline: FluxPipeline) -> None:
    assert "320x192" in UNSEEN
    found, pictures = evaluate(pipeline, CAPTIONS, 320, 192, steps=12)
    assert {picture.shape for picture in pictures} == {(192, 320, 3)}
    assert found.share() >= 0.7, found.shares()
    for kind in ("sky", "ground", "light"):
        assert found.share(kind) >= 0.8, found.shares()


def test_the_seed_changes_the_picture(pipeline: FluxPipeline) -> None:
    prompt = ["a red house on the left under the moon"]
    first, again, other = (
        make_pictures(pipeline, prompt, 128, 128, steps=4, seed=seed)[0] for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
