"""Plots of results."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.compare import Line, lines
from bench.matrix import Cell
from bench.simulator import Outcomes
from bench.trials import BOUND, Record
from scheduler.problem import Stage
from scheduler.tracking import Tracked
from tetriserve import timeline as pictures
from tetriserve.types import Stage as ShownStage
from tetriserve.types import Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Records = Mapping[str, Sequence[Record]]


def sar_by(cells: Sequence[Cell], records: Records, axis: str, folder: Path) -> list[Path]:
    """SAR with its intervals over the `scale` of deadlines or the `rate`, one plot for each of the other."""
    other = "rate" if axis == "scale" else "scale"
    unit = {"scale": "x", "rate": " requests/min"}
    paths = []
    for fixed in sorted({getattr(cell, other) for cell in cells}):
        chosen = [cell for cell in cells if getattr(cell, other) == fixed]
        if len({getattr(cell, axis) for cell in chosen}) < 2:
            continue
        mixes = list(dict.fromkeys(cell.mix for cell in chosen))
        figure = new_figure(5 * len(mixes) + 1.8, 4.2)
        for place, mix in enumerate(mixes, 1):
            axes = _axes(figure, 1, len(mixes), place)
            curves: dict[str, list[tuple[float, Line]]] = {}
            for cell in sorted((c for c in chosen if c.mix == mix), key=lambda c: float(getattr(c, axis))):
                for line in lines(records[cell.name]):
                    curves.setdefault(line.policy, []).append((getattr(cell, axis), line))
            for depth, (policy, points) in enumerate(curves.items()):
                axes.errorbar(
                    [x for x, _ in points],
                    [100 * line.sar.mean for _, line in points],
                    [
                        0 if line.sar.half_width == float("inf") else 100 * line.sar.half_width
                        for _, line in points
                    ],
                    **_style(policy),
                    zorder=_depth(depth),
                )
            axes.set_title(f"{mix}, {fixed:g}{unit[other]}")
            axes.set_xlabel("deadlines, times the base" if axis == "scale" else "requests a minute")
            axes.set_xticks(sorted({getattr(cell, axis) for cell in chosen}))
            axes.set_ylabel("requests on time, %")
            axes.set_ylim(0, 100)
            axes.grid(alpha=0.3)
        legend(figure)
        paths.append(save(figure, folder / f"sar_by_{axis}_{other}_{fixed:g}.png"))
    return paths


def latencies(cell: Cell, records: Records, path: Path) -> Path:
    """The distribution of latencies, all seeds together."""
    figure = new_figure(8, 4.5)
    axes = _axes(figure)
    by_policy: dict[str, list[Sequence[float]]] = {}
    for record in records[cell.name]:
        if record["policy"] != BOUND:
            by_policy.setdefault(record["policy"], []).append(record["latency_percentiles_s"])
    for depth, (policy, runs) in enumerate(by_policy.items()):
        if all(runs):
            means = [statistics.fmean(values) for values in zip(*runs, strict=True)]
            axes.plot(means, range(len(means)), label=policy, zorder=_depth(depth))
    _logarithmic(axes)
    axes.set_xlabel("latency, s")
    axes.set_ylabel("completed requests, %")
    axes.set_title(cell.name)
    axes.grid(alpha=0.3, which="both")
    legend(figure)
    return save(figure, path)


def cost(cells: Sequence[Cell], records: Records, path: Path) -> Path:
    """SAR over GPU-seconds for each request on time, averaged over the cells."""
    figure = new_figure(8, 4.5)
    axes = _axes(figure)
    points: dict[str, list[tuple[float, float]]] = {}
    for cell in cells:
        for line in lines(records[cell.name]):
            if line.gpu_seconds_per_on_time is not None:
                points.setdefault(line.policy, []).append((line.gpu_seconds_per_on_time.mean, line.sar.mean))
    for depth, (policy, found) in enumerate(points.items()):
        x, y = (statistics.fmean(values) for values in zip(*found, strict=True))
        axes.plot([x], [100 * y], "o", label=policy, zorder=_depth(depth))
    _logarithmic(axes)
    axes.set_xlabel("GPU-seconds for each request on time")
    axes.set_ylabel("requests on time, %")
    axes.grid(alpha=0.3, which="both")
    legend(figure)
    return save(figure, path)


def timeline(policy: str, outcomes: Outcomes, gpus: int, path: Path) -> Path:
    """One run over time; the ending of `path` is one of `tetriserve.timeline.ENDINGS`."""
    courses = [_course(tracked) for tracked in outcomes.requests]
    pictures.draw(courses, path, gpus=gpus, title=f"{policy}, simulated")
    return path


def _course(tracked: Tracked) -> pictures.Course:
    s = tracked.submission
    done = tracked.stage is Stage.DONE
    verdict = Verdict.ON_TIME if done and not tracked.late else Verdict.LATE
    return pictures.Course(
        label=f"{s.width}x{s.height}, {s.steps} steps",
        arrived=tracked.arrived_at,
        bars=tuple(
            pictures.Bar(span.begin, span.end, span.slots, ShownStage(span.stage.value))
            for span in tracked.spans
        ),
        deadline=tracked.deadline if s.deadline_s is not None else None,
        finished=tracked.finished_at,
        verdict=verdict,
    )


def _style(policy: str) -> dict[str, Any]:
    if policy == BOUND:
        return {"label": "no scheduler can exceed", "color": "black", "linestyle": "--"}
    return {"label": policy, "marker": "o", "markersize": 3, "capsize": 2}


def _axes(figure: "Figure", *place: int) -> "Axes":
    """A subplot with as many colours as there are policies, those that are easy to tell apart first."""
    from matplotlib import colormaps

    axes = figure.add_subplot(*place)
    colours = colormaps["tab20"].colors  # type: ignore[attr-defined]
    axes.set_prop_cycle(color=[*colours[::2], *colours[1::2]])
    return axes


def _depth(index: int) -> float:
    """The first is on top."""
    return 3 - index / 100


def _logarithmic(axes: "Axes") -> None:
    axes.set_xscale("log")
    for which in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        which("{x:g}")
    axes.tick_params(axis="x", which="minor", labelsize=7)


def legend(figure: "Figure") -> None:
    """Beside the subplots, where it hides nothing."""
    handles, labels = figure.axes[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8)


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of so many inches."""
    # Not pyplot: it keeps global state and looks for a display.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(figure: "Figure", path: Path) -> Path:
    """Write a figure as a picture; its path."""
    figure.savefig(path, dpi=120)
    return path
