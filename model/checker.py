"""Does a picture show what its caption states? Answered from the pixels alone.

The picture is shrunk, its sky, ground and light are read from where they belong, and then every object
in every colour at every side (with small shifts and sizes) is tried on it: the one that explains the
pixels best is what the picture shows, if it explains enough of them. A fact that cannot be read is
None and makes its statement wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
from PIL import Image

from model.captions import KINDS, Caption
from model.scenes import (
    COLOUR_RGB,
    COLOURS,
    GROUND_DIMMED,
    GROUND_RGB,
    HORIZON,
    LIGHT_RADIUS,
    LIGHT_RGB,
    OBJECTS,
    SIDES,
    SKY_RGB,
    Array,
    Canvas,
    Jitter,
    Scene,
    object_frame,
    object_parts,
    paint_ground,
    paint_sky,
)

SHORT_SIDE = 64  # pixels that the checker looks at
NEAR = 0.25  # RGB distance (0 to 1.73) within which a pixel counts as having a colour
SKY_REJECTED, GROUND_REJECTED = 0.35, 0.30  # beyond this it is no sky, no ground that we know
LIGHT_SHARE = 0.45  # of the expected area must have the light's colour
OBJECT_SHARE = 0.60  # of the object's pixels must be near what they should be


def shrink(picture: Array) -> Array:
    """The picture with its shorter side at 64 pixels, each the mean of what it covers."""
    height, width = picture.shape[:2]
    scale = SHORT_SIDE / min(width, height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    pixels = Image.fromarray((np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8))
    return np.asarray(pixels.resize(size, Image.Resampling.BOX), dtype=np.float32) / np.float32(255)


def rows_between(small: Array, top: float, bottom: float) -> Array:
    height = len(small)
    return small[round(top * height) : max(round(top * height) + 1, round(bottom * height))]


def read_sky(small: Array) -> str | None:
    """The sky whose top and horizon colours are nearest; medians look past objects."""
    seen = [np.median(rows_between(small, *band), axis=(0, 1)) for band in ((0.0, 0.06), (0.48, 0.53))]
    distances = {}
    for sky, (top, low) in SKY_RGB.items():
        expected = (
            np.asarray(top),
            np.asarray(top) + (0.5 / HORIZON - 0.06) * (np.asarray(low) - np.asarray(top)),
        )
        distances[sky] = np.mean([np.linalg.norm(s - e) for s, e in zip(seen, expected, strict=True)])
    sky = min(distances, key=lambda name: distances[name])
    return sky if distances[sky] < SKY_REJECTED else None


def read_ground(small: Array, sky: str | None) -> str | None:
    """The ground whose near colour is nearest to the bottom rows."""
    seen = np.median(rows_between(small, 0.92, 1.0), axis=(0, 1))
    dimmed = GROUND_DIMMED[sky] if sky else 1.0
    distances = {
        ground: float(np.linalg.norm(seen - np.asarray(near) * dimmed))
        for ground, (_, near) in GROUND_RGB.items()
    }
    ground = min(distances, key=lambda name: distances[name])
    return ground if distances[ground] < GROUND_REJECTED else None


def read_light(small: Array) -> str | None:
    """Sun or moon: whose colour covers enough of the upper sky."""
    upper = rows_between(small, 0.02, 0.32)
    expected = {"sun": np.pi * (LIGHT_RADIUS * SHORT_SIDE) ** 2}
    expected["moon"] = 0.55 * expected["sun"]  # a crescent
    shares = {
        light: float((np.linalg.norm(upper - np.asarray(rgb), axis=-1) < NEAR).sum() / expected[light])
        for light, rgb in LIGHT_RGB.items()
    }
    light = max(shares, key=lambda name: shares[name])
    return light if shares[light] >= LIGHT_SHARE else None


@dataclass(frozen=True, slots=True)
class Template:
    """An object at a place: within `rows`, `columns` it is `keep * background + tint * colour + fixed`."""

    thing: str
    side: str
    rows: slice
    columns: slice
    keep: Array
    tint: Array
    fixed: Array


def template(thing: str, side: str, jitter: Jitter, width: int, height: int) -> Template:
    """Render the object twice, in black and in white: the difference is where its colour shows."""

    def render(value: float, background: float) -> Array:
        canvas = Canvas(width, height)
        canvas.rgb += background
        x, y, size = object_frame(canvas, side, jitter)
        for distance, colour in object_parts(thing, (value, value, value), x, y):
            canvas.fill(distance * np.float32(size), colour)
        return canvas.rgb

    fixed = render(0, 0)
    tint, keep = (render(1, 0) - fixed)[..., 0], (render(0, 1) - fixed)[..., 0]
    covered = keep < 0.99
    down, across = np.flatnonzero(covered.any(1)), np.flatnonzero(covered.any(0))
    # A margin of what must not be covered, so that a small object is no part of a large one.
    rows = slice(max(0, down[0] - 3), down[-1] + 4)
    columns = slice(max(0, across[0] - 3), across[-1] + 4)
    return Template(
        thing, side, rows, columns, keep[rows, columns], tint[rows, columns], fixed[rows, columns]
    )


@lru_cache(maxsize=8)
def templates(width: int, height: int) -> list[Template]:
    """Every object at every side, over the places and sizes that the drawing allows and a little more."""
    return [
        template(thing, side, Jitter(x=x, foot=foot, size=size), width, height)
        for thing, side in product(OBJECTS, SIDES)
        for x, foot, size in product((-1.5, -0.75, 0.0, 0.75, 1.5), (-1.5, 0.0, 1.5), (-1.0, 1.0))
    ]


def read_object(small: Array, background: Array) -> tuple[str, str, str] | None:
    """The (object, colour, side) that explains the most, if its pixels are mostly there."""
    height, width = small.shape[:2]
    palette = np.asarray([COLOUR_RGB[colour] for colour in COLOURS], dtype=np.float32)
    best: tuple[float, float, tuple[str, str, str]] | None = None
    for made in templates(width, height):
        seen, behind = small[made.rows, made.columns], background[made.rows, made.columns]
        base = made.keep[..., None] * behind + made.fixed
        errors = ((base + made.tint[..., None] * palette[:, None, None] - seen) ** 2).sum(-1)
        gain = ((behind - seen) ** 2).sum() - errors.sum((1, 2))
        colour = int(gain.argmax())
        if best is None or gain[colour] > best[0]:
            share = float((errors[colour][made.keep < 0.5] < NEAR**2).mean())
            best = (float(gain[colour]), share, (made.thing, COLOURS[colour], made.side))
    if best is None or best[0] <= 0 or best[1] < OBJECT_SHARE:
        return None
    return best[2]


def read(picture: Array) -> dict[str, str | None]:
    """What a picture, `(height, width, 3)` RGB within 0 to 1, shows: a value a kind, None where unread."""
    small = shrink(picture)
    sky = read_sky(small)
    ground, light = read_ground(small, sky), read_light(small)
    canvas = Canvas(small.shape[1], small.shape[0])
    plain = Scene(sky or "day", ground or "hills")
    paint_sky(canvas, plain, Jitter())
    paint_ground(canvas, plain, Jitter())
    thing, colour, side = read_object(small, canvas.rgb) or (None, None, None)
    return {"sky": sky, "ground": ground, "light": light, "object": thing, "colour": colour, "side": side}


def check(picture: Array, statements: dict[str, str]) -> dict[str, bool]:
    """Whether each statement of a caption holds in the picture."""
    shown = read(picture)
    return {kind: shown[kind] == value for kind, value in statements.items()}


@dataclass
class Score:
    """Shares of right statements, over all and by kind."""

    right: dict[str, int]
    total: dict[str, int]

    @classmethod
    def empty(cls) -> Score:
        return cls(dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0))

    def add(self, results: dict[str, bool]) -> None:
        for kind, right in results.items():
            self.right[kind] += right
            self.total[kind] += 1

    def __add__(self, other: Score) -> Score:
        return Score(
            {kind: self.right[kind] + other.right[kind] for kind in KINDS},
            {kind: self.total[kind] + other.total[kind] for kind in KINDS},
        )

    def share(self, kind: str | None = None) -> float:
        """The share right of one kind, or of all statements; 0 where there are none."""
        kinds = KINDS if kind is None else (kind,)
        total = sum(self.total[name] for name in kinds)
        return sum(self.right[name] for name in kinds) / total if total else 0.0

    def shares(self) -> dict[str, float]:
        return {"all": self.share()} | {kind: self.share(kind) for kind in KINDS}


def score(pictures: list[Array], captions: list[Caption]) -> Score:
    """The score of pictures against their captions, pairwise."""
    total = Score.empty()
    for picture, made in zip(pictures, captions, strict=True):
        total.add(check(picture, made.statements))
    return total
