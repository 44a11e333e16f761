"""What options of the command line take: numbers, and files to write."""

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


class Output(click.Path):
    """A file to write, whose folder is there: else that is said before the work, not after it."""

    def __init__(self, allow_dash: bool = False) -> None:
        super().__init__(dir_okay=False, writable=True, allow_dash=allow_dash)

    def convert(
        self, value: str | PathLike[str], param: click.Parameter | None, ctx: click.Context | None
    ) -> str:
        """The path."""
        path = str(super().convert(value, param, ctx))
        if not (self.allow_dash and path == "-") and not Path(path).resolve().parent.is_dir():
            self.fail(f"the folder of {path} does not exist.", param, ctx)
        return path


class Picture(Output):
    """A file to draw into, whose ending tells what kind of picture is wanted."""

    def convert(
        self, value: str | PathLike[str], param: click.Parameter | None, ctx: click.Context | None
    ) -> str:
        """The path."""
        path = super().convert(value, param, ctx)
        if Path(path).suffix.lower() not in ENDINGS:
            self.fail(f"{path} does not end in {', '.join(ENDINGS)}.", param, ctx)
        return path
