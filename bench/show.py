"""Tables for people."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

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
    "gpu_utilisation": "GPUs busy",
    "switches": "changes of group",
    "executors_lost": "executors lost",
    "decisions": "decisions",
    "decision_ms": "a decision, ms",
    "decision_sources": "decided by",
    "solver_statuses": "solver said",
    "fallbacks": "fallbacks",
    "rejected": "assignments refused",
}
_SHARES = {"sar", "sar_weighted", "sar_by_size", "sar_by_class", "gpu_utilisation"}


def show_summary(figures: Mapping[str, Any]) -> None:
    """Print the figures of one run."""
    table = Table(
        title=f"{figures['policy']}, seed {figures['seed']}", show_header=False, title_justify="left"
    )
    for name, label in _LABELS.items():
        if name in figures and figures[name] != {}:
            table.add_row(label, _text(figures[name], name in _SHARES))
    Console().print(table)


def _text(value: Any, share: bool) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(each, share)}" for name, each in value.items())
    if value is None:
        return "-"
    if share:
        return f"{value:.1%}"
    return f"{value:.3f}" if isinstance(value, float) and abs(value) < 100 else f"{value:.0f}"
