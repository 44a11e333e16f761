"""The profile: how long a step, a text encoding and a VAE decoding take.

A table of measured (or published, or derived) entries, with interpolation in between. Step times
follow a power law in image tokens between two measured sizes; a degree is a ratio to degree 1, so
that one measured size is enough to guess it at the others.
"""

import bisect
import csv
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from reprlib import repr as short
from typing import TypeVar

N = TypeVar("N", int, float)

KINDS = ("step", "encode", "decode", "switch", "layer")
# What a file must have.
OWN_COLUMNS = {"kind", "width", "height", "degree", "batch", "seconds"}
PLAIN_COLUMNS = {"width", "height", "degree", "seconds_per_step"}
LARGEST = 2**32 - 1
"""Side, degree or batch: no message has room for more."""
LAYERS = 24.0
"""Of a model whose profile does not say: SD3-medium has so many, other families more."""


@dataclass(frozen=True, slots=True)
class StepTime:
    """One entry: median `seconds` of a step, an encoding or a decoding, or what a change of group costs.

    A `layer` is from one layer of such a step to the next. Encodings and changes of group have the size
    0 x 0. `basis` is measured, published or derived; `source` says where from.
    """

    kind: str
    width: int
    height: int
    degree: int
    batch: int
    seconds: float
    cv: float = 0.0
    basis: str = "measured"
    source: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind is one of {', '.join(KINDS)}, not {self.kind!r}")
        sides = ("width", "height") if self.kind in ("step", "decode", "layer") else ()
        for name in (*sides, "degree", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1, not {getattr(self, name)}")
            if getattr(self, name) > LARGEST:
                raise ValueError(f"{name} is at most {LARGEST}")
        if not 0 < self.seconds < math.inf:
            raise ValueError(f"{self.kind}: seconds are positive and finite, not {self.seconds:g}")


class Curve:
    """Positive values at token counts; a power law between neighbours and beyond the ends."""

    def __init__(self, points: Iterable[tuple[int, float]], *, flat_ends: bool = False) -> None:
        self._logs = [(math.log(x), math.log(y)) for x, y in sorted(points)]
        self._flat_ends = flat_ends

    def __call__(self, tokens: int) -> float:
        logs, x = self._logs, math.log(tokens)
        if len(logs) == 1:
            # One point says nothing of the slope: work that grows with the picture is the safe guess.
            return math.exp(logs[0][1] + (0.0 if self._flat_ends else x - logs[0][0]))
        if self._flat_ends:
            x = min(max(x, logs[0][0]), logs[-1][0])
        right = min(max(bisect.bisect_left(logs, (x, -math.inf)), 1), len(logs) - 1)
        (x0, y0), (x1, y1) = logs[right - 1], logs[right]
        return math.exp(y0 + (y1 - y0) * (x - x0) / (x1 - x0))


class Profile:
    """Step times for every size, and the degrees worth using.

    Degrees are powers of two up to the widest one with an entry. Raises ValueError where no
    degree-1 step time is given: nothing can be planned without one.
    """

    def __init__(self, entries: Iterable[StepTime]) -> None:
        # The last entry for a key wins, so that newer measurements replace older ones.
        table = {(e.kind, e.width, e.height, e.degree, e.batch): e for e in entries}
        self.entries: tuple[StepTime, ...] = tuple(table.values())
        steps: dict[tuple[int, int], list[tuple[int, float]]] = defaultdict(list)
        decodes: list[tuple[int, float]] = []
        self._encode = 0.0
        self.switch = 0.0
        """Seconds that a group of several costs whose members last ran in another."""
        self.layers = LAYERS
        """Layers of a step, in which it can be left."""
        self._limited: dict[int, Profile] = {}
        for e in self.entries:
            if e.kind == "step":
                steps[e.degree, e.batch].append((_tokens(e.width, e.height), e.seconds))
            elif e.kind == "decode" and e.degree == e.batch == 1:
                decodes.append((_tokens(e.width, e.height), e.seconds))
            elif e.kind == "encode" and e.degree == e.batch == 1:
                self._encode = e.seconds
            elif e.kind == "switch":
                self.switch = e.seconds
        if (1, 1) not in steps:
            raise ValueError("a profile needs the time of a step at degree 1 and batch 1")
        # Same token count, other shape: the slower one, so that no deadline rests on the faster.
        curves = {key: _slowest(points) for key, points in steps.items()}
        self._single = Curve(curves[1, 1].items())
        self._ratios = {
            key: Curve([(n, s / self._single(n)) for n, s in points.items()], flat_ends=True)
            for key, points in curves.items()
        }
        self._decode = Curve(_slowest(decodes).items()) if decodes else None
        self.max_degree: int = max(degree for degree, batch in steps if batch == 1)
        self._largest: dict[int, int] = defaultdict(int)  # image tokens by batch
        for (_, batch), points in steps.items():
            self._largest[batch] = max(self._largest[batch], *(tokens for tokens, _ in points))
        for e in self.entries:
            if e.kind == "layer" and e.degree <= self.max_degree:
                self.layers = self._step(e.width, e.height, e.degree, e.batch) / e.seconds
        self.step = lru_cache(maxsize=None)(self._step)
        self.decode = lru_cache(maxsize=None)(self._decode_seconds)
        self.degrees = lru_cache(maxsize=None)(self._degrees)

    def _step(self, width: int, height: int, degree: int = 1, batch: int = 1) -> float:
        """Seconds of one denoising step of `batch` pictures together at `degree`."""
        tokens = _tokens(width, height)
        return self._single(tokens) * self._ratio(tokens, degree, batch)

    def max_batch(self, width: int, height: int) -> int:
        """The largest batch that was timed at this size or a larger one: no more is known to fit."""
        tokens = _tokens(width, height)
        return max((batch for batch, largest in self._largest.items() if tokens <= largest), default=1)

    def encode(self) -> float:
        """Seconds of one text encoding."""
        return self._encode

    def _decode_seconds(self, width: int, height: int) -> float:
        """Seconds of one VAE decoding."""
        return self._decode(_tokens(width, height)) if self._decode else 0.0

    def _degrees(self, width: int, height: int) -> tuple[int, ...]:
        """Degrees worth using, ascending: each is faster than all narrower ones."""
        worth: list[int] = []
        degree = 1
        while degree <= self.max_degree:
            if not worth or self.step(width, height, degree) < self.step(width, height, worth[-1]):
                worth.append(degree)
            degree *= 2
        return tuple(worth)

    def least_seconds(self, width: int, height: int, steps: int, encodings: int = 1) -> float:
        """Seconds that so much takes at the fastest degrees, with the decoding."""
        seconds = encodings * self.encode() + self.decode(width, height)
        if steps:
            seconds += steps * self.step(width, height, self.degrees(width, height)[-1])
        return seconds

    def _ratio(self, tokens: int, degree: int, batch: int) -> float:
        """Time against degree 1 and batch 1."""
        if (degree, batch) in self._ratios:
            return self._ratios[degree, batch](tokens)
        if batch > 1:
            return self._ratio(tokens, degree, 1) * self._growth(tokens, degree, batch)
        known = sorted(k for k, b in self._ratios if b == 1)
        if not known[0] <= degree <= known[-1]:
            raise ValueError(f"degree {degree} is outside the profile ({known[0]} to {known[-1]})")
        above = bisect.bisect_left(known, degree)
        low, high = known[above - 1], known[above]
        share = math.log(degree / low) / math.log(high / low)
        return self._ratios[low, 1](tokens) ** (1 - share) * self._ratios[high, 1](tokens) ** share

    def _growth(self, tokens: int, degree: int, batch: int) -> float:
        """Time of a batch never measured at this degree against batch 1: a line between those that were.

        Where none was, as at degree 1; beyond the largest, one such after the other.
        """
        known = [1, *sorted(b for k, b in self._ratios if k == degree and b > 1)]
        if len(known) == 1:
            return float(batch) if degree == 1 else self._ratio(tokens, 1, batch)
        alone = self._ratio(tokens, degree, 1)
        times = [self._ratio(tokens, degree, b) / alone for b in known]
        above = bisect.bisect_left(known, batch)
        if above == len(known):
            return times[-1] * batch / known[-1]
        share = (batch - known[above - 1]) / (known[above] - known[above - 1])
        return times[above - 1] + share * (times[above] - times[above - 1])

    def scaled(
        self, steps: Mapping[int, float], decode: float | None = None, others: float = 1.0
    ) -> "Profile":
        """The same profile with step times multiplied by a factor a degree, and decodings by `decode`.

        By `others` what is not named.
        """
        factor = {"encode": others, "decode": others if decode is None else decode, "switch": 1.0}
        return Profile(
            replace(e, seconds=e.seconds * factor.get(e.kind, steps.get(e.degree, others)))
            for e in self.entries
        )

    def switching(self, seconds: float) -> "Profile":
        """The same profile, in which a change of group costs this."""
        if not seconds:
            return self
        return Profile([*self.entries, StepTime("switch", 0, 0, 1, 1, seconds, basis="given")])

    def limited(self, max_degree: int) -> "Profile":
        """The same profile without degrees above `max_degree`."""
        if max_degree >= self.max_degree:
            return self
        if max_degree not in self._limited:
            self._limited[max_degree] = Profile(e for e in self.entries if e.degree <= max_degree)
        return self._limited[max_degree]


def _tokens(width: int, height: int) -> int:
    """Image tokens: one for 16 x 16 pixels, as in all model families (8x VAE, 2 x 2 patches).

    Times depend on ratios of tokens only, so a family with other tokens would be served, too.
    """
    return max(1, math.ceil(width / 16) * math.ceil(height / 16))


def _slowest(points: Sequence[tuple[int, float]]) -> dict[int, float]:
    slowest: dict[int, float] = {}
    for tokens, seconds in points:
        slowest[tokens] = max(seconds, slowest.get(tokens, 0.0))
    return slowest


@lru_cache(maxsize=64)
def slowest(*profiles: Profile) -> Profile:
    """One whose entries are the slowest of all of these."""
    if len(set(profiles)) == 1:
        return profiles[0]
    return Profile(sorted((e for p in profiles for e in p.entries), key=lambda e: e.seconds))


def save(profile: Profile, path: Path) -> None:
    """Write the entries as CSV, one line each, replacing the file at once."""
    names = [f.name for f in fields(StepTime)]
    draft = path.with_suffix(".tmp")
    with draft.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows([getattr(e, name) for name in names] for e in profile.entries)
    draft.replace(path)


def load(path: Path) -> Profile:
    """Read what `save` wrote.

    Also a plain CSV with the columns width, height, degree, seconds_per_step and, optionally, batch,
    text_encode_s, vae_decode_s. Raises ValueError with the file, and the line where one is wrong.
    """
    entries: list[StepTime] = []
    # Spreadsheets write a byte order mark in front.
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        try:
            columns = reader.fieldnames or ()
            plain = "seconds_per_step" in columns or "kind" not in columns
            missing = (PLAIN_COLUMNS if plain else OWN_COLUMNS) - set(columns)
            if columns and missing:
                raise ValueError(f"no column {', '.join(sorted(missing))}")
            for line in reader:
                if None in line:
                    raise ValueError("there are more values than columns")
                entries += _plain(line) if plain else [_own(line)]
        except (UnicodeDecodeError, csv.Error):
            raise ValueError(f"{path}: a profile is a CSV file, this is none") from None
        except ValueError as error:
            raise ValueError(f"{path}, line {reader.line_num}: {error}") from None
    try:
        return Profile(entries)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


Line = dict[str, str | None]
"""Values by column; None: the line ends before it."""


def _own(line: Line) -> StepTime:
    width, height, degree, batch = (number(line, n, int) for n in ("width", "height", "degree", "batch"))
    return StepTime(
        line.get("kind") or "",
        width,
        height,
        degree,
        batch,
        number(line, "seconds", float),
        number(line, "cv", float) if line.get("cv") else 0.0,
        line.get("basis") or "measured",
        line.get("source") or "",
    )


def _plain(line: Line) -> list[StepTime]:
    width, height, degree = (number(line, name, int) for name in ("width", "height", "degree"))
    batch = number(line, "batch", int) if line.get("batch") else 1
    told = 0.0, line.get("basis") or "published", line.get("source") or ""
    rows = [StepTime("step", width, height, degree, batch, number(line, "seconds_per_step", float), *told)]
    if line.get("text_encode_s"):
        rows.append(StepTime("encode", 0, 0, 1, 1, number(line, "text_encode_s", float), *told))
    if line.get("vae_decode_s"):
        rows.append(StepTime("decode", width, height, 1, 1, number(line, "vae_decode_s", float), *told))
    return rows


def number(line: Line, column: str, kind: type[N]) -> N:
    """A number of a line, which must be there. ValueError names the column."""
    text = line.get(column)
    if not text:
        raise ValueError(f"{column} is missing")
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{column} is a {'whole ' * (kind is int)}number, not {short(text)}") from None
