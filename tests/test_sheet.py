"""The contact sheet shows every picture whole, in order, whatever their sizes."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tetriserve.sheet import draw_sheet

SIZES = ((512, 512), (384, 256), (256, 512), (640, 192), (256, 256), (128, 1024), (1024, 128))
COLOURS = ("red", "lime", "blue", "yellow", "magenta", "cyan", "black")


def test_every_picture_is_there_in_its_shape(tmp_path: Path) -> None:
    pictures = []
    for size, colour in zip(SIZES, COLOURS, strict=True):
        path = tmp_path / f"{colour}.png"
        Image.new("RGB", size, colour).save(path)
        pictures.append((path, f"a picture that is {colour}, with words enough for a second line"))
    draw_sheet(pictures, tmp_path / "sheet.png")
    sheet = Image.open(tmp_path / "sheet.png")
    assert sheet.width == 1000
    corners = []
    for size, colour in zip(SIZES[:-1], COLOURS[:-1], strict=True):  # black is also in the words
        mask = (np.asarray(sheet) == Image.new("RGB", (1, 1), colour).getpixel((0, 0))).all(-1)
        down, across = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        height, width = down[-1] - down[0] + 1, across[-1] - across[0] + 1
        assert mask.sum() == width * height > 1000
        assert width / height == pytest.approx(size[0] / size[1], rel=0.05)
        corners.append((down[0], across[0]))
    assert corners == sorted(corners)


def test_one_picture_keeps_its_size_about(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "one.png")
    draw_sheet([(tmp_path / "one.png", "one")], tmp_path / "sheet.jpg")
    assert Image.open(tmp_path / "sheet.jpg").height < 300


def test_no_pictures_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no pictures"):
        draw_sheet([], tmp_path / "sheet.png")
