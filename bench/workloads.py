"""Workloads: which sizes come, when, and by when they are wanted.

Sizes, deadlines and arrival times are drawn from streams of their own, so that two workloads with the
same seed differ only in what was asked to differ: policies, rates and scales can be compared in pairs.
"""

import csv
import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.fields import amount, count
from bench.simulator import Arrival
from scheduler.tracking import Submission
from tetriserve.options import MOST

STEPS = 50
"""Denoising steps of a request, as in the paper."""

BASE_DEADLINES = {256: 1.5, 512: 2.0, 1024: 3.0, 2048: 5.0}
"""Seconds by the side of a square picture, as in the paper; other sizes get the next larger one's."""

BURST_RATE, QUIET_RATE, BURST_S, QUIET_S = 4.0, 0.25, 10.0, 40.0
"""Rates of bursts and of quiet times as multiples of the mean rate, and their mean lengths."""

TIERS = ((1.0, 0.6), (3.0, 0.3), (10.0, 0.1))
"""Weights of three classes of customers and their shares."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of request: `share` is relative to the others' of its mix; None: the general rule."""

    width: int
    height: int
    share: float
    steps: int | None = None
    deadline_s: float | None = None
    weight: float | None = None
    label: str = ""

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise ValueError(f"width and height are positive, not {self.width}x{self.height}")
        if max(self.width, self.height) > MOST:
            raise ValueError(f"width and height are at most {MOST:g}")


def _squares(shares: Sequence[float]) -> list[Kind]:
    return [Kind(side, side, share) for side, share in zip(BASE_DEADLINES, shares, strict=True)]


def _skewed() -> list[float]:
    tokens = [(side / 16) ** 2 for side in BASE_DEADLINES]
    return [math.exp(n / tokens[-1]) for n in tokens]


_MIXES: dict[str, Callable[[], list[Kind]]] = {
    "uniform": lambda: _squares([1, 1, 1, 1]),
    "skewed": lambda: _squares(_skewed()),
    "small-heavy": lambda: _squares([0.35, 0.35, 0.15, 0.15]),
}
MIX_HELP = f"{', '.join(_MIXES)}, only:WIDTHxHEIGHT, or a CSV file"


def mix(name: str) -> list[Kind]:
    """The kinds of a mix by its name, or from a CSV.

    The CSV has the columns width, height, share and, optionally, steps, deadline_s, weight, class.
    Raises ValueError where there is no such mix, or with the line where the file is wrong.
    """
    if name in _MIXES:
        return _MIXES[name]()
    if name.startswith("only:"):
        width, cross, height = name.removeprefix("only:").partition("x")
        if cross and width.isdecimal() and height.isdecimal():
            return [Kind(int(width), int(height), 1.0)]
        raise ValueError(f"{name!r} is not of the form only:WIDTHxHEIGHT, such as only:1024x1024")
    path = Path(name)
    if not path.is_file():
        raise ValueError(f"there is no mix and no file {name!r}; there are {MIX_HELP}")
    try:
        return _read_mix(path)
    except (UnicodeDecodeError, csv.Error):
        raise ValueError(f"{path}: a mix is a CSV file, this is none") from None


def _read_mix(path: Path) -> list[Kind]:
    kinds: list[Kind] = []
    # Spreadsheets write a byte order mark in front.
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        missing = {"width", "height", "share"} - set(reader.fieldnames or ())
        if missing:
            raise ValueError(f"{path}, line 1: no column {', '.join(sorted(missing))}")
        for row in reader:
            fields = {name: text for name, text in row.items() if text not in (None, "")}
            try:
                if None in row:
                    raise ValueError("there are more values than columns")
                kinds.append(
                    Kind(
                        width=count(fields, "width"),
                        height=count(fields, "height"),
                        share=amount(fields, "share", 0.0),
                        steps=count(fields, "steps") if "steps" in fields else None,
                        deadline_s=amount(fields, "deadline_s", 0.0) if "deadline_s" in fields else None,
                        weight=amount(fields, "weight", 0.0) if "weight" in fields else None,
                        label=fields.get("class", ""),
                    )
                )
            except ValueError as error:
                raise ValueError(f"{path}, line {reader.line_num}: {error}") from None
    if not sum(kind.share for kind in kinds) > 0:
        raise ValueError(f"{path}: the shares add up to nothing")
    return kinds


@dataclass(frozen=True, slots=True)
class Workload:
    """What to draw; `arrivals()` draws it.

    `rate` is in requests a minute. Arrivals end after `requests` of them, or else after `duration`
    seconds. `deadlines` is by-size (the paper's, times `slo_scale`), or unrelated: from the tightest that any
    size can ask for to four times that, whatever the size. `times` are instants in place of a process.
    """

    kinds: Sequence[Kind]
    rate: float = 12.0
    duration: float = 1200.0
    requests: int | None = None
    process: str = "poisson"
    times: Sequence[float] | None = None
    slo_scale: float = 1.0
    deadlines: str = "by-size"
    weights: str = "equal"
    steps: int = STEPS
    seed: int = 0

    def arrivals(self) -> list[Arrival]:
        """The requests, by time."""
        instants: Iterator[float]
        if self.times is not None:
            instants = iter(sorted(self.times))
        else:
            process = PROCESSES[self.process]
            instants = process(self.rate / 60, random.Random(f"arrivals {self.seed}"))
        if self.requests is not None:
            instants = itertools.islice(instants, self.requests)
        else:
            instants = itertools.takewhile(lambda at: at < self.duration, instants)
        sizes, slacks, tiers = (random.Random(f"{what} {self.seed}") for what in ("sizes", "slack", "tiers"))
        shares = [kind.share for kind in self.kinds]
        arrivals = []
        for index, at in enumerate(instants):
            kind = sizes.choices(self.kinds, shares)[0]
            tier = tiers.choices([w for w, _ in TIERS], [share for _, share in TIERS])[0]
            weight = tier if self.weights == "tiers" else 1.0
            if kind.weight is not None:
                weight = kind.weight
            deadline_s = self._deadline(kind, slacks.random())
            steps = self.steps if kind.steps is None else kind.steps
            submission = Submission(f"r{index}", kind.width, kind.height, steps, deadline_s, weight)
            label = kind.label or (f"weight {weight:g}" if self.weights == "tiers" else "")
            arrivals.append(Arrival(at, submission, label))
        return arrivals

    def _deadline(self, kind: Kind, draw: float) -> float:
        if kind.deadline_s is not None:
            return kind.deadline_s * self.slo_scale
        if self.deadlines == "unrelated":
            return float(max(BASE_DEADLINES.values()) * 4.0**draw * self.slo_scale)
        return base_deadline(kind.width, kind.height) * self.slo_scale


def base_deadline(width: int, height: int) -> float:
    """The paper's deadline for a picture of this many pixels, in seconds."""
    largest = max(BASE_DEADLINES)
    side = min((s for s in BASE_DEADLINES if s * s >= width * height), default=largest)
    return BASE_DEADLINES[side]


def _poisson(per_second: float, rng: random.Random) -> Iterator[float]:
    at = 0.0
    while True:
        at += rng.expovariate(per_second)
        yield at


def _burst(per_second: float, rng: random.Random) -> Iterator[float]:
    """Poisson with a rate that jumps between bursts and quiet times; the mean is `per_second`."""
    begin = 0.0
    for factor, length_s in itertools.cycle(((QUIET_RATE, QUIET_S), (BURST_RATE, BURST_S))):
        end = begin + rng.expovariate(1 / length_s)
        at = begin
        while (at := at + rng.expovariate(per_second * factor)) < end:
            yield at
        begin = end


PROCESSES: dict[str, Callable[[float, random.Random], Iterator[float]]] = {
    "poisson": _poisson,
    "burst": _burst,
}
