"""The measures that the step cache is judged by."""

import numpy as np
import pytest

from bench.step_cache import prompts, psnr, ssim

PICTURE = np.random.default_rng(1).integers(0, 246, (40, 30, 3)).astype(float)


def test_equal_pictures_are_alike_in_every_measure():
    assert psnr(PICTURE, PICTURE) == float("inf")
    assert ssim(PICTURE, PICTURE) == pytest.approx(1)


def test_an_offset_of_ten_is_28_db():
    assert psnr(PICTURE, PICTURE + 10) == pytest.approx(28.13, abs=0.01)


def test_structure_counts_more_than_brightness():
    noise = np.random.default_rng(2).permutation(PICTURE)
    assert abs(ssim(PICTURE, noise)) < 0.1 < 0.9 < ssim(PICTURE, PICTURE + 10) < 1


def test_prompts_differ():
    assert len(set(prompts(16))) == 16
