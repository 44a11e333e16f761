"""A profile as a CSV file, which the scheduler and the simulator read, with where each row is from."""

from __future__ import annotations

import csv
import io
import os
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from executor.profile_cache import Key
from executor.profiler import Measurement

# The first nine are what scheduler.profile reads; the others are for people.
COLUMNS = (
    *("kind", "width", "height", "degree", "batch", "seconds", "cv", "basis", "source"),
    *("repeats", "peak_mib"),
)


class ProfileFile:
    """The rows of one file. `add` rewrites the file at once, so that an interruption loses nothing.

    Args:
        path: None: nowhere, `text` has it.
        model: how the model is called.
        key: what its step times depend on.
    """

    def __init__(self, path: Path | None, model: str, key: Key) -> None:
        self._path = path
        self._model = model
        self._key = key
        self._step: Measurement | None = None  # the first
        self._rows: list[dict[str, object]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, row: Measurement) -> None:
        """Append a row, with the date and the machine's load of this moment."""
        if row.kind == "step":
            self._step = self._step or row
        self._add(row, row.kind)

    def _add(self, row: Measurement, kind: str) -> None:
        source = provenance(self._model, self._key)
        self._rows.append(
            {
                "kind": kind,
                "width": row.width,
                "height": row.height,
                "degree": row.degree,
                "batch": row.batch,
                "seconds": f"{row.seconds:.6g}",
                "cv": f"{row.cv:.4f}",
                "basis": "derived" if row.derivation else "measured",
                "source": f"{row.derivation}; {source}" if row.derivation else source,
                "repeats": row.repeats,
                "peak_mib": round(row.peak_bytes / 2**20) or "",
            }
        )
        if self._path is not None:
            draft = self._path.with_name(self._path.name + ".tmp")
            draft.write_text(self.text())
            draft.replace(self._path)

    def add_layer(self, layers: int) -> None:
        """Append what one of so many layers takes, an equal share of the first step that was measured."""
        if (step := self._step) is not None:
            share = f"one of {layers} layers of a step of {step.seconds:.6g} s"
            self._add(replace(step, seconds=step.seconds / layers, derivation=share), "layer")

    def text(self) -> str:
        """The file."""
        return _csv(self._rows)


def provenance(model: str, key: Key) -> str:
    """What was measured, on what, with what, when, and how busy the machine was."""
    threads = f"{key.threads} thread{'s' * (key.threads > 1)}"
    return ", ".join(
        [
            f"python -m executor profile of {model} ({key.model})",
            key.device,
            key.dtype.removeprefix("torch."),
            f"attention {key.attention}",
            *([f"compiled ({key.compile_mode})"] if key.compile_mode else []),
            *([threads] if not key.device.startswith("NVIDIA") else []),
            *key.versions,
            time.strftime("%Y-%m-%d", time.gmtime()),
            f"load {os.getloadavg()[0]:.1f}",
        ]
    )


def _csv(rows: Iterable[dict[str, object]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
