"""A contact sheet: pictures of any size in rows, each with its words below.

draw_sheet([(Path("house.png"), "a red house under a yellow sun")], Path("sheet.jpg"))
"""

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

_WIDTH = 1000  # pixels of the whole sheet
_PICTURE_AREA = 170 * 170  # of each picture, before its row is stretched to the width of the sheet
_GAP, _LINE = 12, 14
_INK = "#24292f"
_LETTER = 6.2  # mean width of a letter, pixels


def draw_sheet(pictures: Sequence[tuple[Path, str]], file: Path) -> None:
    """Draw the picture files with their captions, in order, to `file` (its ending says in which format).

    Raises:
        ValueError: there are no pictures.
    """
    if not pictures:
        raise ValueError("no pictures to draw")
    rows = list(_rows([(Image.open(path), words) for path, words in pictures]))
    height = _GAP + sum(row_height for _, row_height in rows)
    sheet = Image.new("RGB", (_WIDTH, height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    top = _GAP
    for row, row_height in rows:
        left = _GAP
        for picture, lines in row:
            sheet.paste(picture, (left, top))
            for number, line in enumerate(lines):
                pen.text((left, top + picture.height + 3 + number * _LINE), line, _INK, font=font)
            left += picture.width + _GAP
        top += row_height
    sheet.save(file, quality=88)


Tile = tuple[Image.Image, list[str]]


def _rows(pictures: Sequence[tuple[Image.Image, str]]) -> Iterator[tuple[list[Tile], int]]:
    """Rows of scaled pictures with their wrapped words, and the height of each row in pixels.

    All pictures of a row are equally high; a row ends where another picture would make it too low.
    """
    row: list[tuple[Image.Image, str]] = []
    for picture, words in pictures:
        row.append((picture, words))
        if _row_height(row) <= _mean_height(row):
            yield _set_row(row, _row_height(row))
            row = []
    if row:
        yield _set_row(row, min(_row_height(row), _mean_height(row)))


def _row_height(row: Sequence[tuple[Image.Image, str]]) -> int:
    """How high pictures of one height are when together they are as wide as the sheet."""
    free = _WIDTH - _GAP * (len(row) + 1)
    return int(free / sum(picture.width / picture.height for picture, _ in row))


def _mean_height(row: Sequence[tuple[Image.Image, str]]) -> int:
    """How high its pictures are when each has its area."""
    heights = [(_PICTURE_AREA * picture.height / picture.width) ** 0.5 for picture, _ in row]
    return int(sum(heights) / len(heights))


def _set_row(row: Sequence[tuple[Image.Image, str]], height: int) -> tuple[list[Tile], int]:
    tiles: list[Tile] = []
    for picture, words in row:
        width = max(1, height * picture.width // picture.height)
        small = picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
        tiles.append((small, textwrap.wrap(words, max(1, int(width / _LETTER)))))
    return tiles, height + 3 + _LINE * max(len(lines) for _, lines in tiles) + _GAP
