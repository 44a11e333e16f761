"""The settings of `python -m bench paper`: the paper's, and those that it leaves out."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from bench.runs import DEFAULT_PROFILE, Setting
from bench.workloads import BASE_DEADLINES, Workload, mix

SCALES = (1.0, 1.1, 1.2, 1.3, 1.5)
RATES = (6.0, 12.0, 18.0, 24.0)
SMALL_RATES = (60.0, 120.0, 180.0, 240.0)
POLICIES = (
    "cp-sat",
    "search",
    "edf",
    "tetriserve",
    "tetriserve:event",
    "srtf",
    "edf-best-fit",
    "rssp",
    "fixed:1",
    "fixed:2",
    "fixed:4",
    "fixed:8",
)

GROUPS = (
    "flux",
    "bursts",
    "unrelated",
    "weights",
    "crowds",
    "homogeneous",
    "small-heavy",
    "small-heavy sd3",
    "sd3",
)

CROWDED_RATES = {"uniform": (48.0, 72.0), "skewed": (36.0, 48.0)}
"""More than eight GPUs can do, so that with long deadlines tens of requests could each be on time."""

SLOW_SCALE = 4.0
"""SD3-medium needs 4 to 5 times the paper's deadlines on four A40 with 50 steps (docs/profiles.md)."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A setting with a name, and where it belongs in tables and plots."""

    name: str
    group: str
    mix: str
    scale: float
    rate: float
    setting: Setting


def cells(duration: float) -> Iterator[Cell]:
    """All settings; seeds are still to be given."""
    base = Setting(Workload(mix("uniform"), duration=duration))
    for name in ("uniform", "skewed"):
        for scale in SCALES:
            for rate in RATES:
                yield _cell("flux", name, scale, rate, base)
    for name in ("uniform", "skewed"):
        for scale in (1.0, 1.2, 1.5):
            for rate in (12.0, 24.0):
                yield _cell("bursts", name, scale, rate, base, process="burst")
                yield _cell("unrelated", name, scale, rate, base, deadlines="unrelated")
                yield _cell("weights", name, scale, rate, base, weights="tiers")
    # Many times the requests: a quarter of the time has plenty.
    short = replace(base.workload, duration=duration / 4)
    crowded = replace(base, workload=replace(short, deadlines="unrelated"))
    for name, rates in CROWDED_RATES.items():
        for rate in rates:
            yield _cell("crowds", name, 2.0, rate, crowded, weights="tiers")
    for side in BASE_DEADLINES:
        yield _cell("homogeneous", f"only:{side}x{side}", 1.2, 12.0, base)
    slow = replace(base, profile="sd3-medium-4xa40", gpus=4)
    for rate in SMALL_RATES:
        yield _cell("small-heavy", "small-heavy", 1.2, rate, replace(base, workload=short))
        # Where a small picture does not fill a GPU, so that batches matter.
        yield _cell("small-heavy sd3", "small-heavy", SLOW_SCALE, rate, replace(slow, workload=short))
    for name in ("uniform", "skewed"):
        for scale in SCALES:
            for rate in RATES:
                yield _cell("sd3", name, SLOW_SCALE * scale, rate, slow)


def quick_cells(duration: float) -> Iterator[Cell]:
    """A few of them, to see that everything works."""
    base = Setting(Workload(mix("uniform"), duration=duration))
    for name in ("uniform", "skewed"):
        for scale in (1.0, 1.5):
            for rate in (12.0, 24.0):
                yield _cell("flux", name, scale, rate, base)
    yield _cell("bursts", "skewed", 1.2, 12.0, base, process="burst")


def _cell(group: str, name: str, scale: float, rate: float, base: Setting, **how: str) -> Cell:
    workload = replace(base.workload, kinds=mix(name), slo_scale=scale, rate=rate)
    workload = replace(workload, **how)  # type: ignore[arg-type]
    label = f"{group} {name} {scale:g}x {rate:g}/min"
    return Cell(label, group, name, scale, rate, replace(base, workload=workload))


def default_profile_cells(found: list[Cell]) -> list[Cell]:
    """Those on the paper's main machine and workload."""
    return [cell for cell in found if cell.group == "flux" and cell.setting.profile == DEFAULT_PROFILE]
