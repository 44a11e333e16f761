"""Numbers in a line of a trace or of a mix: what is allowed is the same in both."""

import math
from collections.abc import Mapping
from typing import Any


def amount(fields: Mapping[str, Any], name: str, least: float) -> float:
    """A finite number of at least `least`. ValueError: it is another, none, or missing."""
    if name not in fields:
        raise ValueError(f"{name} is missing")
    try:
        value = float(fields[name])
    except (TypeError, ValueError):
        raise ValueError(f"{name} is a number, not {fields[name]!r}") from None
    if not least <= value < math.inf:
        raise ValueError(f"{name} is at least {least:g} and finite, not {fields[name]!r}")
    return value


def count(fields: Mapping[str, Any], name: str) -> int:
    """A whole number of at least 1. ValueError: it is another, none, or missing."""
    value = amount(fields, name, 1.0)
    if value != int(value):
        raise ValueError(f"{name} is a whole number, not {fields[name]!r}")
    return int(value)
