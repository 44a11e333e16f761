"""Drawing does not depend on the size, and the scenes are what they say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.checker import shrink
from model.scenes import OBJECTS, Jitter, Scene, all_scenes, draw, polygon

SCENES = list(all_scenes())
HOUSE = Scene("dusk", "sea", "moon", "house", "red", "left")

jitters = st.builds(Jitter, *[st.floats(-1, 1)] * 8)


@settings(max_examples=20, deadline=None)
@given(scene=st.sampled_from(SCENES), jitter=jitters)
def test_every_size_shows_the_same_picture(scene: Scene, jitter: Jitter) -> None:
    small, large = (shrink(draw(scene, size, size, jitter)) for size in (128, 512))
    assert np.abs(small - large).mean() < 0.01


@settings(max_examples=20, deadline=None)
@given(scene=st.sampled_from(SCENES), jitter=jitters, width=st.integers(1, 90), height=st.integers(1, 90))
def test_any_size_is_drawn_within_range(scene: Scene, jitter: Jitter, width: int, height: int) -> None:
    picture = draw(scene, width, height, jitter)
    assert picture.shape == (height, width, 3)
    assert picture.dtype == np.float32
    assert 0 <= picture.min() <= picture.max() <= 1


def test_a_window_is_a_part_of_the_whole() -> None:
    whole = draw(HOUSE, 200, 150, Jitter(x=0.5))
    part = draw(HOUSE, 200, 150, Jitter(x=0.5), window=(20, 40, 64, 48))
    np.testing.assert_allclose(part, whole[40:88, 20:84], atol=1e-5)


def test_each_fact_changes_the_picture() -> None:
    changes = (
        Scene("night", "sea", "moon", "house", "red", "left"),
        Scene("dusk", "sand", "moon", "house", "red", "left"),
        Scene("dusk", "sea", "sun", "house", "red", "left"),
        Scene("dusk", "sea", "moon", "boat", "red", "left"),
        Scene("dusk", "sea", "moon", "house", "blue", "left"),
        Scene("dusk", "sea", "moon", "house", "red", "right"),
    )
    plain = draw(HOUSE, 64, 64)
    for other in changes:
        assert np.abs(draw(other, 64, 64) - plain).max() > 0.2, other


def test_a_share_of_the_scenes_is_held_out_with_every_object_among_them() -> None:
    held_out = [scene for scene in SCENES if scene.held_out]
    assert 0.08 < len(held_out) / len(SCENES) < 0.17
    assert {scene.thing for scene in held_out} == set(OBJECTS)


def test_bad_scenes_are_named() -> None:
    with pytest.raises(ValueError, match="sky must be one of"):
        Scene("noon", "sea")
    with pytest.raises(ValueError, match="colour must be one of"):
        Scene("day", "sea", None, "house", None, "left")
    with pytest.raises(ValueError, match="at least one pixel"):
        draw(HOUSE, 0, 10)


def test_polygon_distance_is_negative_inside_only() -> None:
    square = ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0))
    x, y = np.float32([[0.5, 1.5]]), np.float32([[0.5]])
    np.testing.assert_allclose(polygon(x, y, *square), [[-0.5, 0.5]])
