"""Tables for people."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from bench.compare import HEADER, LEGEND, Line, cells
from bench.misses import Miss

_LABELS = {
    "requests": "requests",
    "on_time": "on time",
    "sar": "SAR",
    "sar_weighted": "SAR by weight",
    "sar_by_size": "SAR by size",
    "sar_by_class": "SAR by class",
    "ended": "ended as",
    "latency_s": "latency, s",
    "late_latency_s": "latency of the late, s",
    "ended_at_s": "last end, s",
    "gpu_seconds": "GPU-seconds",
    "gpu_seconds_per_on_time": "GPU-seconds per request on time",
    "gpu_seconds_per_on_time_weighted": "the same by weight",
    "gpu_utilisation": "GPUs busy",
    "switches": "changes of group",
    "requests_per_step": "requests a step",
    "executors_lost": "executors lost",
    "decisions": "decisions",
    "decision_ms": "a decision, ms",
    "decision_sources": "decided by",
    "solver_statuses": "solver said",
    "gap": "below the bound, a plan",
    "fallbacks": "fallbacks",
    "rejected": "assignments refused",
    "refused": "not let in",
    "promised": "promised",
    "promises_broken": "promises broken",
}
_SHARES = {"sar", "sar_weighted", "sar_by_size", "sar_by_class", "gpu_utilisation"}


def show_summary(figures: Mapping[str, Any]) -> None:
    """Print the figures of one run."""
    table = Table(
        title=f"{figures['policy']}, seed {figures['seed']}", show_header=False, title_justify="left"
    )
    for name, label in _LABELS.items():
        if name in figures and figures[name] != {}:
            # As it is: a class of a trace may look like markup.
            table.add_row(label, Text(_text(figures[name], name in _SHARES)))
    Console().print(table)


_REPLAY_LABELS = {
    "requests": "requests",
    "dropped_recorded": "dropped, recorded",
    "dropped_simulated": "dropped, simulated",
    "same_verdict": "on time, late or dropped in both",
    "same_degree": "steps at the recorded degree",
    "same_slots": "steps on the recorded GPUs",
    "latency_error_mean": "latency where done in both, mean error",
    "latency_error_median_abs": "latency, median error, absolute",
    "latency_error_max_abs": "latency, largest error, absolute",
    "makespan_error": "last end, error",
    "orders_recorded": "orders recorded",
    "orders_simulated": "orders simulated",
}


def show_replay(figures: Mapping[str, Any]) -> None:
    """Print how near a simulated run comes to a recorded one."""
    table = Table(title="Simulated against recorded", show_header=False, title_justify="left")
    for name, label in _REPLAY_LABELS.items():
        table.add_row(label, _text(figures[name], name.startswith(("same", "latency", "makespan"))))
    Console().print(table)


def show_bound(figures: Mapping[str, Any]) -> None:
    """Print the bound of one trace."""
    table = Table(title=f"Bound, seed {figures['seed']}", show_header=False, title_justify="left")
    table.add_row("SAR at most", _text(figures["sar_bound"], True))
    table.add_row("on time at most, by weight", f"{figures['weight']:g} of {figures['total']:g}")
    table.add_row("late even alone", f"{figures['hopeless']:g}")
    table.add_row("proven", "yes" if figures["proven"] else "no: cut short, it may be lower")
    table.add_row(
        "busy periods", f"{figures['periods']}, the largest of {figures['largest_period']} requests"
    )
    table.add_row("took, s", _text(figures["seconds"], False))
    Console().print(table)


def show_comparison(lines: Sequence[Line]) -> None:
    """Print policies side by side."""
    seeds = lines[0].seeds
    table = Table(title=f"Means over {seeds} seed{'s' * (seeds != 1)}, 95 % intervals", title_justify="left")
    for title in HEADER:
        table.add_column(title, justify="left" if title == HEADER[0] else "right")
    for line in lines:
        table.add_row(*cells(line))
    console = Console()
    console.print(table)
    console.print(LEGEND)


def show_misses(misses: Sequence[Miss]) -> None:
    """Print what a policy missed."""
    table = Table(title=f"{len(misses)} missed that could have been on time", title_justify="left")
    for title in ("request", "arrived", "had, s", "took, s", "degrees", "at the same time: from, to"):
        table.add_column(title)
    for miss in misses:
        rivals = (
            f"{rival.size} {rival.arrived:+.1f} {rival.deadline:+.1f}{'' if rival.on_time else ' (late)'}"
            for rival in miss.rivals
        )
        table.add_row(
            f"{miss.id} {miss.size}",
            f"{miss.arrived_at:.1f}",
            f"{miss.allowed:.2f}",
            f"{miss.took:.2f}",
            ">".join(map(str, miss.degrees)) or "-",
            "\n".join(rivals),
        )
    Console().print(table if misses else table.title)


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error for as long as the context lasts; what it gives takes done and all."""
    with Progress(*Progress.get_default_columns(), console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _text(value: Any, share: bool) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(each, share)}" for name, each in value.items())
    if value is None:
        return "-"
    if share:
        return f"{value:.1%}"
    return f"{value:.3f}" if isinstance(value, float) and abs(value) < 100 else f"{value:.0f}"
