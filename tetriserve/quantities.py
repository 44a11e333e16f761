"""Sizes, durations and adapters as people write them: "512x512", "8s", "sketch:0.8"."""

import math
import re
from datetime import timedelta

from tetriserve.errors import InvalidArgument

Size = str | tuple[int, int]
"""Width and height in pixels: (768, 512) or "768x512"."""
Duration = float | str | timedelta
"""Seconds, or "250ms", "8s", "1.5m", "2h"."""

_SIZE = re.compile(r"\s*(\d+)\s*[xX×]\s*(\d+)\s*")
_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*(ms|s|m|min|h|)\s*")
_UNITS = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def parse_size(size: Size) -> tuple[int, int]:
    """Width and height in pixels. Raises InvalidArgument."""
    if isinstance(size, str):
        match = _SIZE.fullmatch(size)
        if not match:
            raise InvalidArgument(f"size: {size!r} is not WIDTHxHEIGHT, such as 512x512")
        size = int(match[1]), int(match[2])
    if len(size) != 2 or not all(isinstance(side, int) and 0 < side < 2**31 for side in size):
        raise InvalidArgument(f"size: {size!r} is not a width and a height in pixels, such as (512, 512)")
    return size


def parse_duration(duration: Duration, field: str = "deadline") -> float:
    """Seconds. Raises InvalidArgument, naming the field, where it is not a positive duration."""
    if isinstance(duration, timedelta):
        seconds = duration.total_seconds()
    elif isinstance(duration, str):
        match = _DURATION.fullmatch(duration)
        if not match:
            raise InvalidArgument(f"{field}: {duration!r} is not a duration, such as 8s, 250ms or 1.5m")
        seconds = float(match[1]) * _UNITS[match[2]]
    else:
        seconds = float(duration)
    if not 0 < seconds < math.inf:
        raise InvalidArgument(f"{field}: {duration!r} is not more than 0 seconds")
    return seconds


def parse_lora(lora: str | None) -> tuple[str, float]:
    """Name and scale of "sketch" or "sketch:0.8"; None is no adapter. Raises InvalidArgument."""
    name, colon, scale = (lora or "").partition(":")
    try:
        value = float(scale) if colon else 1.0
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or (colon and not name):
        raise InvalidArgument(f"lora: {lora!r} is not NAME or NAME:SCALE, such as sketch:0.8")
    return name, value


def show_duration(seconds: float) -> str:
    """For people: "0.25s", "8.4s", "3m20s"; a leading minus where it is negative."""
    sign, seconds = "-" if seconds < 0 else "", abs(seconds)
    if seconds < 1:
        return f"{sign}{seconds:.2f}s"
    if seconds < 99.95:
        return f"{sign}{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{sign}{minutes}m{rest:02d}s"
    return f"{sign}{minutes // 60}h{minutes % 60:02d}m"
