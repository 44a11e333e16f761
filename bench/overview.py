"""The first policy in every cell at a glance: how far from the others, and from the bound."""

from collections.abc import Iterator, Mapping, Sequence

from bench.compare import Line, lines, show
from bench.intervals import Estimate
from bench.matrix import Cell
from bench.trials import BOUND, Record

APART = ("search", "edf", "tetriserve")
"""Have a column each; of the others the best is shown."""
LEGEND = (
    "Points of SAR by weight, differences seed by seed; **bold**: outside the interval. *open*: in so "
    "many runs the bound's solver ran out of time. GPU-seconds per request on time are by weight, too: each "
    "counts its weight over the mean weight."
)


def overview(found: Sequence[Cell], by_cell: Mapping[str, Sequence[Record]]) -> Iterator[Sequence[str]]:
    """Rows of a table of the cells, its header first."""
    first = by_cell[found[0].name][0]["policy"]
    yield (
        *("", f"`{first}`, SAR %", *(f"more than `{name}`" for name in APART)),
        *("more than the best other", "below the bound"),
        *(f"GPU-seconds per request on time, `{first}` / `edf`", "latency of the late, s"),
    )
    for cell in found:
        yield tuple(_row(cell.name, by_cell[cell.name]))


def _row(name: str, records: Sequence[Record]) -> Iterator[str]:
    first, *others = lines(records)
    by_policy = {line.policy: line for line in others}
    yield name
    yield show(first.sar, 100, 1)
    for other in APART:
        yield _points(_lead(by_policy.get(other)), sign=True)
    rest = [line for line in others if line.policy not in (*APART, BOUND)]
    best = max(rest, key=lambda line: line.sar.mean, default=None)
    yield _points(_lead(best), sign=True) + (f" (`{best.policy}`)" if best else "")
    bound = by_policy.get(BOUND)
    yield _points(bound.gain if bound else None) + (f", {bound.open} open" if bound and bound.open else "")
    spent = (first, by_policy.get("edf"))
    yield " / ".join("-" if line is None else _mean(line.gpu_seconds_per_on_time, 1) for line in spent)
    yield _mean(first.late_latency_s, 0)


def _lead(line: Line | None) -> Estimate | None:
    """By how much the first policy has more on time."""
    if line is None or line.gain is None:
        return None
    return Estimate(0.0 - line.gain.mean, line.gain.half_width)


def _points(value: Estimate | None, sign: bool = False) -> str:
    text = show(value, 100, 1, sign=sign)
    return f"**{text}**" if value is not None and value.clear and text != "-" else text


def _mean(value: Estimate | None, digits: int) -> str:
    return "-" if value is None else f"{value.mean:.{digits}f}"
