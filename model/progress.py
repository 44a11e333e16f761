"""What every training stage shares: its clock, its resumable state and its log."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass
class Stage:
    """One stage of the training, resumable at any step.

    `folder/<name>.pt` holds the newest state, `folder/<name>.jsonl` one line of figures a report. `steps`
    is the length of the run; the learning rate follows it.
    """

    name: str
    folder: Path
    steps: int
    save_every: float = 60.0  # seconds
    report_every: int = 100
    step: int = 0
    seconds: float = 0.0  # of training, over all runs
    _parts: dict[str, Any] = field(default_factory=dict)
    _sums: dict[str, float] = field(default_factory=dict)
    _count: int = 0

    @property
    def state_file(self) -> Path:
        return self.folder / f"{self.name}.pt"

    @property
    def log_file(self) -> Path:
        return self.folder / f"{self.name}.jsonl"

    def resume(self, **parts: Any) -> None:
        """Register what must survive (modules, optimisers) and load it where a state was saved."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._parts = parts
        if not self.state_file.exists():
            self.log_file.unlink(missing_ok=True)
            return
        state = torch.load(self.state_file, map_location="cpu", weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state["parts"][name])
        self.step, self.seconds = state["step"], state["seconds"]

    def save(self) -> None:
        """Write the state beside the old one, then replace it: a kill never leaves half a file."""
        parts = {name: part.state_dict() for name, part in self._parts.items()}
        fresh = self.state_file.with_suffix(".tmp")
        torch.save({"step": self.step, "seconds": self.seconds, "parts": parts}, fresh)
        fresh.replace(self.state_file)

    def run(self) -> Iterator[int]:
        """The steps that are left. The state is saved now and then, and at the end."""
        saved = started = time.monotonic()
        before = self.seconds
        while self.step < self.steps:
            yield self.step
            self.step += 1
            now = time.monotonic()
            self.seconds = before + now - started
            if now - saved > self.save_every or self.step == self.steps:
                self.save()
                saved = now

    def log(self, **figures: float) -> None:
        """Add one step's figures; every `report_every` steps their means are written and printed."""
        for name, value in figures.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1
        if (self.step + 1) % self.report_every == 0 or self.step + 1 == self.steps:
            self.report(**{name: total / self._count for name, total in self._sums.items()})
            self._sums, self._count = {}, 0

    def report(self, **figures: float) -> None:
        """Write one line of figures to the log and the screen."""
        line = {"step": self.step + 1, "seconds": round(self.seconds, 1)}
        line |= {name: round(value, 5) for name, value in figures.items()}
        with self.log_file.open("a") as log:
            log.write(json.dumps(line) + "\n")
        shown = "  ".join(f"{name} {value:.4f}" for name, value in figures.items())
        print(f"{self.name} {self.step + 1}/{self.steps}  {self.seconds:.0f} s  {shown}", flush=True)

    def learning_rate(self, peak: float, *, warm_up: int = 100, cool_down: float = 0.5) -> float:
        """A warm-up, a plateau, and a cosine to zero over the last `cool_down` of the steps."""
        if self.step < warm_up:
            return peak * (self.step + 1) / warm_up
        left = (self.steps - self.step) / max(1.0, cool_down * self.steps)
        return peak if left >= 1 else peak * 0.5 * (1 - math.cos(math.pi * left))


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate
