"""What the knobs trade: requests on time against GPU-seconds, and against how long the late wait.

The knobs are `--scale-up` (idle GPUs spent on finishing early), `--late` and `--age-bound`. Each setting of
one policy is a point, each other policy, at the server's settings, another.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.compare import Line, lines, show
from bench.plots import new_figure, save
from bench.runs import Setting
from bench.trials import Trial, perform_all
from scheduler.config import Config

SCALE_UPS = (0.0, 0.25, 0.5, 1.0)
AGE_BOUNDS = (60.0, 120.0, 300.0)
HEADER = ("setting", "SAR, %", "GPU-s per hit", "late, s")


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
    found = [(knob, lines([r for r in records if r["cell"] == knob.name])[0]) for knob in points]
    folder.mkdir(parents=True, exist_ok=True)
    return [_table(found, folder / "exchange.md"), _plot(found, folder / "exchange.png")]


def _table(found: Sequence[tuple[Knob, Line]], path: Path) -> Path:
    rows: list[Sequence[str]] = [HEADER, ["---"] * len(HEADER)]
    for knob, line in found:
        spent, late = line.gpu_seconds_per_on_time, line.late_latency_s
        rows.append((knob.name, show(line.sar, 100, 1), show(spent, 1, 1), show(late, 1, 1)))
    path.write_text("\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n")
    return path


def _plot(found: Sequence[tuple[Knob, Line]], path: Path) -> Path:
    figure = new_figure(11, 4.2)
    panels = {
        "GPU-seconds per request on time": lambda line: line.gpu_seconds_per_on_time,
        "mean latency of the late, s": lambda line: line.late_latency_s,
    }
    kinds = list(dict.fromkeys(knob.kind for knob, _ in found))
    for place, (label, figure_of) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(1, 2, place)
        for index, kind in enumerate(kinds):
            chosen = [(k, line) for k, line in found if k.kind == kind and figure_of(line) is not None]
            xs, ys = [figure_of(line).mean for _, line in chosen], [100 * line.sar.mean for _, line in chosen]
            axes.scatter(xs, ys, color=f"C{index}", label=kind, marker="*" if index == 0 else "o", s=60)
            for (knob, _), x, y in zip(chosen, xs, ys, strict=True):
                note = knob.name.rpartition(", ")[2]
                axes.annotate(note, (x, y), xytext=(4, 4), textcoords="offset points", fontsize=7)
        axes.set_xlabel(label)
        axes.set_ylabel("requests on time, %")
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=8)
    return save(figure, path)
