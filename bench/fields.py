"""Numbers in a line of a trace or of a mix: what is allowed is the same in both."""

import math
from collections.abc import Mapping
from reprlib import repr as short
from typing import Any

from tetriserve.options import MOST


def amount(fields: Mapping[str, Any], name: str, least: float) -> float:
    """A finite number of at least `least`, at most MOST. ValueError: it is another, none, or missing."""
    if name not in fields:
        raise ValueError(f"{name} is missing")
    try:
        value = float(fields[name])
    except (TypeError, ValueError):
        raise ValueError(f"{name} is a number, not {short(fields[name])}") from None
    except OverflowError:  # a whole number of hundreds of digits
        value = math.inf
    if not least <= value < math.inf:
        raise ValueError(f"{name} is at least {least:g} and finite, not {short(fields[name])}")
    if value > MOST:
        raise ValueError(f"{name} is at most {MOST:g}, not {short(fields[name])}")
    return value


def count(fields: Mapping[str, Any], name: str) -> int:
    """A whole number of at least 1. ValueError: it is another, none, or missing."""
    value = amount(fields, name, 1.0)
    if value != int(value):
        raise ValueError(f"{name} is a whole number, not {short(fields[name])}")
    return int(value)
