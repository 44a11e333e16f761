"""What the knobs trade: requests on time against GPU-seconds, and against how long the late wait.

The knobs are `--scale-up` (idle GPUs spent on finishing early), `--late` and `--age-bound`. Each setting of
one policy is a point, each other policy, at the server's settings, another.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.compare import Line, lines, show
from bench.plots import legend, new_figure, save
from bench.runs import Setting
from bench.trials import Trial, perform_all
from scheduler.config import Config

SCALE_UPS = (0.0, 0.25, 0.5, 1.0)
AGE_BOUNDS = (60.0, 120.0, 300.0)
MARKERS = "os^Dv<>pPXhd8"
"""Of points of one colour; with more points they come round again."""
HEADER = ("setting", "SAR, %", "to the first", "GPU-s per hit", "late, s")


@dataclass(frozen=True, slots=True)
class Knob:
    """One setting of a policy, by name; `kind` tells points of one colour."""

    name: str
    kind: str
    policy: str
    config: Config


def knobs(policy: str, others: Sequence[str], base: Config) -> Iterator[Knob]:
    """The points to draw; the first is the policy at the server's settings."""
    yield Knob(policy, policy, policy, base)
    for share in SCALE_UPS:
        if share != base.scale_up:
            yield Knob(f"{policy}, scale-up {share:g}", "scale-up", policy, replace(base, scale_up=share))
    yield Knob(f"{policy}, late dropped", "late dropped", policy, replace(base, drop_late=True))
    for bound in AGE_BOUNDS:
        if bound != base.age_bound_s:
            yield Knob(f"{policy}, age {bound:g} s", "age bound", policy, replace(base, age_bound_s=bound))
    for other in others:
        if other != policy:
            yield Knob(other, "other policies", other, base)


def exchange(
    folder: Path,
    policy: str,
    others: Sequence[str],
    setting: Setting,
    seeds: Sequence[int],
    jobs: int,
    progress: Callable[[int, int], None],
) -> list[Path]:
    """Run all points and write a table and a plot; the files written."""
    points = list(knobs(policy, others, setting.config))
    trials = [
        Trial(knob.name, knob.policy, seed, replace(setting, config=knob.config))
        for knob in points
        for seed in seeds
    ]
    records = perform_all(trials, jobs, progress=progress)
    found = list(zip(points, lines([{**r, "policy": r["cell"]} for r in records]), strict=True))
    folder.mkdir(parents=True, exist_ok=True)
    return [_table(found, folder / "exchange.md"), _plot(found, folder / "exchange.png")]


def _table(found: Sequence[tuple[Knob, Line]], path: Path) -> Path:
    rows: list[Sequence[str]] = [HEADER, ["---"] * len(HEADER)]
    for knob, line in found:
        spent, late = line.gpu_seconds_per_on_time, line.late_latency_s
        gain = show(line.gain, 100, 1, sign=True)
        rows.append((knob.name, show(line.sar, 100, 1), gain, show(spent, 1, 1), show(late, 1, 1)))
    path.write_text("\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n")
    return path


def _plot(found: Sequence[tuple[Knob, Line]], path: Path) -> Path:
    """Means; the bars are the 95 % intervals of the difference to the first, seed by seed."""
    figure = new_figure(12.5, 4.2)
    panels = {
        "GPU-seconds per request on time": lambda line: line.gpu_seconds_per_on_time,
        "mean latency of the late, s": lambda line: line.late_latency_s,
    }
    kinds = list(dict.fromkeys(knob.kind for knob, _ in found))
    for place, (label, figure_of) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(1, 2, place)
        for index, kind in enumerate(kinds):
            chosen = [(knob, line) for knob, line in found if knob.kind == kind]
            markers = itertools.cycle("*" if index == 0 else MARKERS)
            for (knob, line), marker in zip(chosen, markers, strict=False):
                x = figure_of(line)
                axes.errorbar(
                    [] if x is None else [x.mean],
                    [] if x is None else [100 * line.sar.mean],
                    yerr=None if x is None or line.gain is None else [100 * line.gain.half_width],
                    color=f"C{index}",
                    marker=marker,
                    markersize=15 if index == 0 else 6,
                    # Others may be at the same place as the first.
                    fillstyle="none" if index == 0 else "full",
                    linestyle="none",
                    elinewidth=0.8,
                    label=knob.name,
                )
        axes.set_xlabel(label)
        axes.set_ylabel("requests on time, %")
        axes.grid(alpha=0.3)
    legend(figure)
    return save(figure, path)
