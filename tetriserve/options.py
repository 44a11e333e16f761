"""What options of the command line take: numbers, and files to draw into."""

import math
from os import PathLike
from pathlib import Path
from typing import Any

import click

from tetriserve.timeline import ENDINGS

MOST = 1e12
"""Far beyond all that makes sense; of larger ones sums and products would not be finite any more."""


class Number(click.FloatRange):
    """A finite number in a range; a range alone lets `nan` through, and `inf` where it is open."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is no finite number", param, ctx)
        if abs(number) > MOST:
            self.fail(f"{value} is too large, at most {MOST:g} is allowed", param, ctx)
        return number


POSITIVE = Number(min=0, min_open=True)
NOT_NEGATIVE = Number(min=0)
SHARE = Number(0, 1)


class Picture(click.Path):
    """A file to draw into, whose ending tells what kind of picture is wanted."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False, writable=True, path_type=Path)

    def convert(
        self, value: str | PathLike[str], param: click.Parameter | None, ctx: click.Context | None
    ) -> Path:
        """The path."""
        path = super().convert(value, param, ctx)
        assert isinstance(path, Path)  # as `path_type` wants it
        if path.suffix.lower() not in ENDINGS:
            self.fail(f"{path} does not end in {', '.join(ENDINGS)}.", param, ctx)
        if not path.resolve().parent.is_dir():
            self.fail(f"the folder of {path} does not exist.", param, ctx)
        return path
