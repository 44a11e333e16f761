"""The timeline picture: which request ran on which GPUs, when, at which degree, and whether on time.

Plain data in, so that the simulator's traces are drawn by the same hand as a live scheduler's:

    draw([Course("a", arrived=0.0, finished=3.0, deadline=4.0,
                 bars=(Bar(0.5, 3.0, (0, 1), Stage.DENOISING),))], "timeline.png")
"""

import colorsys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import groupby
from os import PathLike
from typing import TYPE_CHECKING, Any, NamedTuple

from tetriserve.quantities import show_duration
from tetriserve.types import RequestStatus, Stage, Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Colour = tuple[float, float, float]

ENDINGS = (".png", ".pdf", ".svg")

ON_TIME, LATE, OPEN = "#1a7f37", "#c62828", "#57606a"
_HATCHES = {Stage.ENCODING: "/////", Stage.DECODING: "....."}
_MOST_ROWS = 80  # more requests than this leave no readable row each
_WIDTH = 15.0  # inches
_PLOT_WIDTH = 13.0  # what the names at the left leave of it


@dataclass(frozen=True, slots=True)
class Bar:
    """One order: `stage` of a request on `slots`, from `begin` to `end` in seconds."""

    begin: float
    end: float
    slots: tuple[int, ...]
    stage: Stage


@dataclass(frozen=True, slots=True)
class Course:
    """One request's way through the cluster; times in seconds on the clock of all courses."""

    label: str
    arrived: float
    bars: tuple[Bar, ...]
    deadline: float | None = None
    """Absolute; None: best effort."""
    finished: float | None = None
    """None: it has not ended."""
    verdict: Verdict = Verdict.OPEN

    @property
    def degrees(self) -> str:
        """Degrees of its denoising steps in order, such as "1>2>1"."""
        degrees = (len(bar.slots) for bar in self.bars if bar.stage is Stage.DENOISING)
        return ">".join(str(degree) for degree, _ in groupby(degrees))


def courses(statuses: Iterable[RequestStatus]) -> list[Course]:
    """Courses of requests as `Client.get` tells them, by arrival; second 0 is the first arrival.

    What still runs is drawn up to the last moment that any of them knows of.
    """
    ordered = sorted(statuses, key=lambda status: status.submitted_at)
    if not ordered:
        return []
    origin = ordered[0].submitted_at
    known = [span.end or span.begin for status in ordered for span in status.spans]
    now = max([status.finished_at or status.submitted_at for status in ordered] + known)

    def seconds(moment: datetime) -> float:
        return (moment - origin).total_seconds()

    return [
        Course(
            label=f"{status.request.image.width}x{status.request.image.height},"
            f" {status.request.image.steps} steps",
            arrived=seconds(status.submitted_at),
            bars=tuple(
                Bar(
                    seconds(span.begin),
                    seconds(span.end or status.finished_at or now),
                    span.slots,
                    span.stage,
                )
                for span in status.spans
            ),
            deadline=seconds(status.deadline_at) if status.deadline_at else None,
            finished=seconds(status.finished_at) if status.finished_at else None,
            verdict=status.verdict,
        )
        for status in ordered
    ]


def draw(
    courses: Sequence[Course],
    path: str | PathLike[str],
    *,
    gpus: int | None = None,
    title: str = "",
    window: tuple[float, float] | None = None,
) -> None:
    """Write the picture of `courses` to `path` (see ENDINGS).

    Above, GPUs x time: one colour a request, as high as its group is wide; requests of a batch share that
    height. Below, one row a
    request with its deadline; left out where there are more than 80. `gpus` is the number of slots,
    by default one more than the highest used. `window` cuts out the time from one second to another.
    Raises ValueError where there is nothing to draw.
    """
    if window:
        courses = [c for c in courses if c.arrived < window[1] and _last_moment(c) > window[0]]
    if not any(course.bars for course in courses):
        raise ValueError("no request has run yet: there is nothing to draw")
    if gpus is None:
        gpus = 1 + max(slot for course in courses for bar in course.bars for slot in bar.slots)
    # Not pyplot: it keeps global state and looks for a display.
    from matplotlib.figure import Figure

    gpu_row = min(0.75, max(0.16, 4.5 / gpus))
    rows = len(courses) if len(courses) <= _MOST_ROWS else 0
    heights = [gpu_row * gpus + 0.3] + [0.27 * rows + 0.3] * bool(rows)
    figure = Figure(figsize=(_WIDTH, sum(heights) + 1.5), dpi=110)
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.08)
    axes = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    colours = [_colour(i) for i in range(len(courses))]
    first, last = window or _limits(courses)
    axes[0].set_xlim(first, last)
    _draw_gpus(axes[0], courses, colours, gpus, (_PLOT_WIDTH / (last - first), gpu_row))
    if rows:
        _draw_requests(axes[1], courses, colours, gpus)
    axes[-1].set_xlabel("seconds")
    figure.suptitle(title or _title(courses, gpus), x=0.01, ha="left", fontsize=13, fontweight="bold")
    _legend(figure, deadlines=bool(rows))
    figure.savefig(path)


def _draw_gpus(
    axes: "Axes",
    courses: Sequence[Course],
    colours: Sequence[Colour],
    gpus: int,
    scale: tuple[float, float],
) -> None:
    """`scale` is inches a second and inches a GPU."""
    axes.set_ylim(gpus - 0.5, -0.5)
    axes.spines[:].set_visible(False)
    axes.set_yticks(range(gpus), [f"GPU {slot}" for slot in range(gpus)])
    axes.tick_params(axis="y", length=0)
    for slot in range(gpus + 1):
        axes.axhline(slot - 0.5, color="#d0d7de", linewidth=0.6, zorder=0)
    lanes = _lanes(courses)
    for number, (course, colour) in enumerate(zip(courses, colours, strict=True), 1):
        mine = [(bar, _lane(lanes, bar, course)) for bar in course.bars]
        for bar, lane in mine:
            for low, high in _blocks(bar.slots):
                _rectangle(axes, bar, *lane.within(low - 0.45, high - low + 0.9), colour)
            if (lowest := min(bar.slots)) + len(bar.slots) - 1 < (highest := max(bar.slots)):
                axes.plot([bar.begin] * 2, [lowest, highest], color=colour, linewidth=1.5, zorder=1)
        for run, lane in _runs(mine):
            for low, high in _blocks(run.slots):
                bottom, height = lane.within(low - 0.45, high - low + 0.9)
                box = (run.begin, run.end, bottom, height)
                _label(axes, box, scale, f"#{number}", len(run.slots), colour)


def _draw_requests(axes: "Axes", courses: Sequence[Course], colours: Sequence[Colour], gpus: int) -> None:
    axes.set_ylim(len(courses) - 0.3, -0.7)
    axes.spines[["left", "top", "right"]].set_visible(False)
    axes.set_yticks(
        range(len(courses)), [f"{course.label}   #{i}" for i, course in enumerate(courses, 1)], fontsize=8
    )
    axes.tick_params(axis="y", length=0)
    for row, (course, colour) in enumerate(zip(courses, colours, strict=True)):
        last = max([bar.end for bar in course.bars], default=course.arrived)
        end = course.finished if course.finished is not None else last
        axes.plot([course.arrived, end], [row, row], color="#8c959f", linewidth=1, zorder=1)
        axes.plot(course.arrived, row, marker="|", markersize=7, color="#57606a", zorder=1)
        for bar in course.bars:
            height = 0.25 + 0.6 * len(bar.slots) / gpus
            _rectangle(axes, bar, row - height / 2, height, colour)
        ink = {Verdict.ON_TIME: ON_TIME, Verdict.LATE: LATE, Verdict.OPEN: OPEN}[course.verdict]
        if course.deadline is not None:
            reach = [row - 0.46, row + 0.46]
            axes.plot([course.deadline] * 2, reach, color="white", linewidth=5, zorder=4)
            axes.plot([course.deadline] * 2, reach, color=ink, linewidth=2.2, zorder=5)
            if end > course.deadline:
                axes.plot([course.deadline, end], [row, row], color=LATE, linewidth=2.2, zorder=1)
        axes.annotate(
            _outcome(course),
            (_last_moment(course), row),
            (6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=ink,
            annotation_clip=True,
        )


def _rectangle(axes: "Axes", bar: Bar, bottom: float, height: float, colour: Colour) -> None:
    axes.broken_barh(
        [(bar.begin, bar.end - bar.begin)],
        (bottom, height),
        facecolor=colour if bar.stage is Stage.DENOISING else _lighter(colour),
        edgecolor="white" if bar.stage is Stage.DENOISING else colour,
        hatch=_HATCHES.get(bar.stage),
        linewidth=0.4,
        zorder=2,
    )


def _label(
    axes: "Axes",
    box: tuple[float, float, float, float],
    scale: tuple[float, float],
    name: str,
    degree: int,
    colour: Colour,
) -> None:
    """The request's name and the degree, as far as a bar has room for them.

    `box` is its begin, end, bottom and height; `scale` is inches a second and inches a GPU.
    """
    begin, end, bottom, height = box
    room = (end - begin) * scale[0], height * scale[1]
    texts = (f"{name}  ×{degree}", f"{name}\n×{degree}")
    text = next((t for t in texts if _text_width(t, 9) < room[0] and _text_height(t, 9) < room[1]), "")
    dark = sum(weight * part for weight, part in zip((0.3, 0.59, 0.11), colour, strict=True)) < 0.6
    ink = "white" if dark else "black"
    axes.text(
        (begin + end) / 2,
        bottom + height / 2,
        text,
        ha="center",
        va="center",
        fontsize=9,
        color=ink,
        zorder=3,
        clip_on=True,
    )


def _outcome(course: Course) -> str:
    if course.finished is None:
        return "running" if course.bars else "waiting"
    words = [show_duration(course.finished - course.arrived)]
    if course.degrees:
        words.append(f"degree {course.degrees}")
    if course.deadline is not None and course.verdict is not Verdict.OPEN:
        off = show_duration(abs(course.deadline - course.finished))
        words.append(f"{off} early" if course.finished <= course.deadline else f"{off} late")
    return ", ".join(words)


def _title(courses: Sequence[Course], gpus: int) -> str:
    ended = [course for course in courses if course.finished is not None]
    on_time = sum(course.verdict is Verdict.ON_TIME for course in ended)
    return (
        f"{len(courses)} request{'s' * (len(courses) != 1)} on {gpus} GPU{'s' * (gpus != 1)},"
        f" {on_time} of {len(ended)} ended on time"
    )


def _legend(figure: "Figure", deadlines: bool) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    grey = (0.6, 0.64, 0.68)
    handles: list[Any] = [
        Patch(facecolor=_lighter(grey), edgecolor=grey, hatch=_HATCHES[Stage.ENCODING], label="encoding"),
        Patch(facecolor=grey, label="denoising (an order a block, ×degree; in layers: a batch)"),
        Patch(facecolor=_lighter(grey), edgecolor=grey, hatch=_HATCHES[Stage.DECODING], label="decoding"),
    ]
    if deadlines:
        handles.append(Line2D([], [], color=ON_TIME, linewidth=2.2, label="deadline met"))
        handles.append(Line2D([], [], color=LATE, linewidth=2.2, label="deadline missed"))
    figure.legend(handles=handles, loc="outside lower right", ncols=len(handles), fontsize=8, frameon=False)


def _limits(courses: Sequence[Course]) -> tuple[float, float]:
    """Of the time axis: from the first arrival on, with room for the words at the right of each row."""
    begin = min(course.arrived for course in courses)
    span = 1e-6
    for course in courses:
        words = _text_width(_outcome(course), 8) + 0.2 if len(courses) <= _MOST_ROWS else 0.1
        span = max(span, (_last_moment(course) - begin) / (1 - words / _PLOT_WIDTH))
    return begin - 0.01 * span, begin + span


def _last_moment(course: Course) -> float:
    """The end of what is drawn of it, its deadline included."""
    ends = [bar.end for bar in course.bars] + [course.arrived, course.finished, course.deadline]
    return max(end for end in ends if end is not None)


def _text_width(text: str, points: float) -> float:
    """About how wide it is, in inches."""
    return max(len(line) for line in text.split("\n")) * points * 0.7 / 72


def _text_height(text: str, points: float) -> float:
    """At least how high it is, in inches."""
    return len(text.split("\n")) * points / 72


class _Lane(NamedTuple):
    """Which layer of a bar's height a request has, from the top, where several share its steps."""

    layer: int = 0
    layers: int = 1

    def within(self, bottom: float, height: float) -> tuple[float, float]:
        """Its part of a height."""
        return bottom + height * self.layer / self.layers, height / self.layers


def _lanes(courses: Sequence[Course]) -> dict[tuple[float, tuple[int, ...]], list[int]]:
    """Requests that share steps, by begin and slots: each by the identity of its course."""
    lanes: dict[tuple[float, tuple[int, ...]], list[int]] = {}
    for course in courses:
        for bar in course.bars:
            if bar.stage is Stage.DENOISING:
                lanes.setdefault((bar.begin, bar.slots), []).append(id(course))
    return lanes


def _lane(lanes: dict[tuple[float, tuple[int, ...]], list[int]], bar: Bar, course: Course) -> _Lane:
    if bar.stage is not Stage.DENOISING:
        return _Lane()
    sharing = lanes[bar.begin, bar.slots]
    return _Lane(sharing.index(id(course)), len(sharing))


def _runs(bars: Sequence[tuple[Bar, _Lane]]) -> Iterator[tuple[Bar, _Lane]]:
    """Denoising orders that follow each other closely in the same place, as one."""
    run: tuple[Bar, _Lane] | None = None
    for bar, lane in bars:
        if bar.stage is not Stage.DENOISING:
            continue
        if run:
            last = run[0]
            close = bar.begin - last.end < 0.1 * (bar.end - bar.begin)
            if close and (last.slots, run[1]) == (bar.slots, lane):
                run = replace(last, end=bar.end), lane
                continue
            yield run
        run = bar, lane
    if run:
        yield run


def _blocks(slots: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Runs of neighbouring slots, as lowest and highest."""
    for _, run in groupby(enumerate(sorted(slots)), key=lambda pair: pair[1] - pair[0]):
        block = [slot for _, slot in run]
        yield block[0], block[-1]


def _colour(index: int) -> Colour:
    """The golden ratio spreads any number of hues; the lightness tells near ones apart."""
    return colorsys.hls_to_rgb((0.58 + index * 0.618034) % 1, (0.46, 0.6, 0.38)[index % 3], 0.62)


def _lighter(colour: Colour) -> Colour:
    red, green, blue = (0.35 * part + 0.65 for part in colour)
    return red, green, blue
