"""The checker is right on true pictures, and near chance where picture and caption do not belong together."""

from __future__ import annotations

import numpy as np
import pytest

from model.captions import held_out_captions
from model.checker import check, read, score
from model.scenes import Jitter, Scene, draw

CAPTIONS = held_out_captions(60, seed=7)


def pictures(width: int, height: int) -> list:
    random = np.random.default_rng(3)
    return [draw(made.scene, width, height, Jitter.draw(random)) for made in CAPTIONS]


@pytest.mark.parametrize(("width", "height"), [(128, 128), (256, 160), (96, 192)])
def test_true_pictures_are_right(width: int, height: int) -> None:
    assert score(pictures(width, height), CAPTIONS).share() >= 0.99


def test_wrong_captions_are_near_chance() -> None:
    """Of 3 skies and grounds, 2 lights or none, 4 objects, 6 colours, 3 sides: 0.29 on average."""
    order = np.random.default_rng(0).permutation(len(CAPTIONS))
    wrong = score(pictures(128, 128), [CAPTIONS[place] for place in order])
    assert 0.15 < wrong.share() < 0.4
    assert wrong.share("object") < 0.4
    assert wrong.share("colour") < 0.35


def test_noise_and_blanks_show_no_object_and_no_light() -> None:
    random = np.random.default_rng(0)
    for picture in (random.random((128, 128, 3)), np.full((128, 128, 3), 0.5), np.zeros((128, 128, 3))):
        shown = read(picture.astype(np.float32))
        assert shown["object"] is None
        assert shown["light"] is None


def test_a_smudge_of_the_right_colour_is_no_house() -> None:
    scene = Scene("day", "hills")
    picture = draw(scene, 128, 128)
    picture[60:80, 20:40] = (0.87, 0.13, 0.13)
    assert read(picture)["object"] is None


def test_one_wrong_fact_is_one_wrong_statement() -> None:
    picture = draw(Scene("night", "sand", "moon", "car", "blue", "right"), 256, 256)
    said = {
        "sky": "night",
        "ground": "sand",
        "light": "moon",
        "object": "car",
        "colour": "red",
        "side": "right",
    }
    assert check(picture, said) == {kind: kind != "colour" for kind in said}


def test_blur_and_noise_as_of_a_model_are_forgiven() -> None:
    random = np.random.default_rng(1)
    noisy = [
        np.clip(p + random.normal(0, 0.08, p.shape), 0, 1).astype(np.float32) for p in pictures(128, 128)
    ]
    assert score(noisy, CAPTIONS).share() >= 0.97
