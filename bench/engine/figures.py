"""Measured figures: a JSON file and a Markdown page, with where they are from."""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from executor.profile_cache import device_name


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value: of which part, what, where it matters at which size, and in which unit."""

    part: str
    what: str
    value: float
    unit: str
    size: str = ""
    note: str = ""


def provenance(device: str) -> dict[str, object]:
    """The machine, the libraries, the date and the load of this moment."""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "device": device_name(torch.device(device)),
        "cores": os.cpu_count(),
        "load": [round(load, 2) for load in os.getloadavg()],
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers", "xfuser")},
    }


def save(folder: Path, name: str, figures: Iterable[Figure], begun: dict[str, object]) -> list[Path]:
    """Write `name`.json and `name`.md; `begun` is the provenance taken when measuring began."""
    figures = list(figures)
    folder.mkdir(parents=True, exist_ok=True)
    content = {"provenance": begun, "figures": [asdict(figure) for figure in figures]}
    written = folder / f"{name}.json", folder / f"{name}.md"
    written[0].write_text(json.dumps(content, indent=1) + "\n")
    written[1].write_text(markdown(figures, begun))
    return list(written)


def markdown(figures: Iterable[Figure], begun: dict[str, object]) -> str:
    """One table a part."""
    versions = begun["versions"]
    assert isinstance(versions, dict)
    lines = [
        "# What the engine costs",
        "",
        f"Written by `python -m bench.engine` on {begun['date']}: {begun['device']}, {begun['cores']} cores, "
        f"load {begun['load']} at the beginning, Python {begun['python']}, "
        + ", ".join(f"{name} {number}" for name, number in versions.items())
        + ".",
    ]
    parts: dict[str, list[Figure]] = {}
    for figure in figures:
        parts.setdefault(figure.part, []).append(figure)
    for part, rows in parts.items():
        lines += ["", f"## {part}", "", "| what | size | | note |", "|---|---|---|---|"]
        lines += [f"| {f.what} | {f.size} | {_number(f.value)} {f.unit} | {f.note} |" for f in rows]
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    """Four digits that count."""
    if not value or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:.{max(0, 3 - math.floor(math.log10(abs(value))))}f}"
