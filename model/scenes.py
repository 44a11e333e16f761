"""Little scenes and how they are drawn, at any size.

A `Scene` is what a caption can say (sky, light, ground, object, colour, side); a `Jitter` is what it
cannot: small differences of place and form, so that two seeds give two pictures. Shapes are signed
distances in pixels, so that edges are smooth at 128 as at 1024, square or not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Rgb = tuple[float, float, float]

SKIES = ("day", "dusk", "night")
LIGHTS = ("sun", "moon")
GROUNDS = ("hills", "sea", "sand")
OBJECTS = ("house", "tree", "boat", "car")
COLOURS = ("red", "yellow", "green", "blue", "purple", "white")
SIDES = ("left", "centre", "right")

SKY_RGB: dict[str, tuple[Rgb, Rgb]] = {  # top, horizon
    "day": ((0.35, 0.64, 0.96), (0.72, 0.88, 0.99)),
    "dusk": ((0.48, 0.26, 0.52), (0.99, 0.62, 0.40)),
    "night": ((0.04, 0.05, 0.17), (0.13, 0.16, 0.36)),
}
LIGHT_RGB: dict[str, Rgb] = {"sun": (1.0, 0.84, 0.20), "moon": (0.94, 0.94, 0.86)}
GROUND_RGB: dict[str, tuple[Rgb, Rgb]] = {  # far, near
    "hills": ((0.27, 0.47, 0.22), (0.42, 0.62, 0.24)),
    "sea": ((0.06, 0.30, 0.48), (0.12, 0.46, 0.60)),
    "sand": ((0.80, 0.66, 0.42), (0.90, 0.79, 0.56)),
}
GROUND_DIMMED = {"day": 1.0, "dusk": 0.9, "night": 0.75}
COLOUR_RGB: dict[str, Rgb] = {
    "red": (0.87, 0.13, 0.13),
    "yellow": (0.97, 0.83, 0.13),
    "green": (0.05, 0.75, 0.36),
    "blue": (0.14, 0.28, 0.92),
    "purple": (0.60, 0.17, 0.76),
    "white": (0.97, 0.97, 0.97),
}
BROWN, DARK, GLASS, SAIL = (0.36, 0.22, 0.13), (0.10, 0.10, 0.12), (0.76, 0.90, 0.98), (0.98, 0.95, 0.88)

OBJECT_SIZE = 0.44  # of the shorter side
OBJECT_FOOT = 0.81  # of the height
OBJECT_X = {"left": 0.27, "centre": 0.5, "right": 0.73}  # of the width
LIGHT_X = {"left": 0.74, "centre": 0.77, "right": 0.26}  # by the object's side: across from it
LIGHT_Y = 0.17
LIGHT_RADIUS = 0.095  # of the shorter side
HORIZON = 0.60


@dataclass(frozen=True, slots=True)
class Scene:
    """What a caption can say. `light`, and `thing` with its colour and side, may be absent (None)."""

    sky: str
    ground: str
    light: str | None = None
    thing: str | None = None
    colour: str | None = None
    side: str | None = None

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("sky", self.sky, SKIES),
            ("ground", self.ground, GROUNDS),
            ("light", self.light, (*LIGHTS, None)),
            ("thing", self.thing, (*OBJECTS, None)),
            ("colour", self.colour, (*COLOURS, None) if self.thing is None else COLOURS),
            ("side", self.side, (*SIDES, None) if self.thing is None else SIDES),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {value!r}")

    @property
    def held_out(self) -> bool:
        """One scene in eight is never trained on: the test of whether words combine."""
        digest = hashlib.sha256(repr(astuple(self)).encode()).digest()
        return self.thing is not None and digest[0] < 32


def all_scenes() -> Iterator[Scene]:
    """Every scene there is, with and without an object."""
    for sky, ground, light in product(SKIES, GROUNDS, (*LIGHTS, None)):
        yield Scene(sky, ground, light)
        for thing, colour, side in product(OBJECTS, COLOURS, SIDES):
            yield Scene(sky, ground, light, thing, colour, side)


@dataclass(frozen=True, slots=True)
class Jitter:
    """What no caption says. Every field is within -1 to 1; zero is the plain picture."""

    x: float = 0.0
    foot: float = 0.0
    size: float = 0.0
    light_x: float = 0.0
    light_y: float = 0.0
    horizon: float = 0.0
    ridge: float = 0.0
    swell: float = 0.0

    @classmethod
    def draw(cls, random: np.random.Generator) -> Jitter:
        return cls(*random.uniform(-1, 1, size=8).tolist())


Window = tuple[int, int, int, int]  # left, top, width, height in pixels


def pixel_centres(start: int, count: int, unit: int) -> Array:
    return ((np.arange(start, start + count) + 0.5) / unit).astype(np.float32)


class Canvas:
    """Pixels to paint on, with the pixel centres in fractions of the shorter side."""

    def __init__(self, width: int, height: int, window: Window | None = None) -> None:
        if width < 1 or height < 1:
            raise ValueError(f"a picture needs at least one pixel, got {width}x{height}")
        left, top, columns, rows = window or (0, 0, width, height)
        self.unit = min(width, height)
        self.width, self.height = width / self.unit, height / self.unit
        self.x = pixel_centres(left, columns, self.unit)[None, :]
        self.y = pixel_centres(top, rows, self.unit)[:, None]
        self.rgb: Array = np.zeros((rows, columns, 3), dtype=np.float32)

    def fill(self, distance: Array, colour: Array | Rgb) -> None:
        """Paint where `distance` (fractions of the shorter side) is negative, smoothly over one pixel."""
        cover = np.clip(0.5 - distance * self.unit, 0, 1)[..., None]
        self.rgb += cover * (np.asarray(colour, dtype=np.float32) - self.rgb)


def disc(x: Array, y: Array, radius: float) -> Array:
    return np.sqrt(x * x + y * y) - np.float32(radius)


def box(x: Array, y: Array, left: float, top: float, right: float, bottom: float) -> Array:
    return np.maximum(np.maximum(left - x, x - right), np.maximum(top - y, y - bottom))


def polygon(x: Array, y: Array, *corners: tuple[float, float]) -> Array:
    """Signed distance to a convex polygon; corners go clockwise on the screen (y points down)."""
    distance = np.full(np.broadcast_shapes(x.shape, y.shape), -np.inf, dtype=np.float32)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        length = float(np.hypot(bx - ax, by - ay))
        distance = np.maximum(distance, ((by - ay) * (x - ax) - (bx - ax) * (y - ay)) / length)
    return distance


Part = tuple[Array, Rgb]


def object_parts(thing: str, colour: Rgb, x: Array, y: Array) -> list[Part]:
    """The painted parts of an object, back to front, in its own frame: -0.5 to 0.5, foot at y = 0.5."""
    shade: Rgb = (colour[0] * 0.55, colour[1] * 0.55, colour[2] * 0.55)
    if thing == "house":
        return [
            (box(x, y, -0.38, -0.08, 0.38, 0.5), colour),
            (polygon(x, y, (0.0, -0.5), (0.5, -0.06), (-0.5, -0.06)), shade),
            (box(x, y, -0.26, 0.12, -0.04, 0.5), BROWN),
            (box(x, y, 0.08, 0.10, 0.28, 0.30), GLASS),
        ]
    if thing == "tree":
        return [
            (box(x, y, -0.08, 0.0, 0.08, 0.5), BROWN),
            (disc(x, y + 0.15, 0.35), colour),
        ]
    if thing == "boat":
        return [
            (box(x, y, -0.03, -0.5, 0.03, 0.3), BROWN),
            (polygon(x, y, (0.05, -0.46), (0.44, 0.14), (0.05, 0.14)), SAIL),
            (polygon(x, y, (-0.05, -0.36), (-0.05, 0.14), (-0.36, 0.14)), SAIL),
            (polygon(x, y, (-0.5, 0.2), (0.5, 0.2), (0.34, 0.5), (-0.34, 0.5)), colour),
        ]
    if thing == "car":
        return [
            (polygon(x, y, (-0.20, -0.22), (0.16, -0.22), (0.34, 0.08), (-0.34, 0.08)), colour),
            (polygon(x, y, (-0.14, -0.15), (0.11, -0.15), (0.22, 0.05), (-0.22, 0.05)), GLASS),
            (box(x, y, -0.5, 0.06, 0.5, 0.36), colour),
            (disc(x + 0.27, y - 0.36, 0.14), DARK),
            (disc(x - 0.27, y - 0.36, 0.14), DARK),
        ]
    raise ValueError(f"no such object: {thing!r}")


def object_frame(canvas: Canvas, side: str, jitter: Jitter) -> tuple[Array, Array, float]:
    """Pixel coordinates in the object's own frame, and the frame's size."""
    size = OBJECT_SIZE + 0.02 * jitter.size
    centre_x = OBJECT_X[side] * canvas.width + 0.025 * jitter.x
    foot_y = OBJECT_FOOT * canvas.height + 0.015 * jitter.foot
    return (canvas.x - centre_x) / size, (canvas.y - foot_y) / size + 0.5, size


def paint_sky(canvas: Canvas, scene: Scene, jitter: Jitter) -> None:
    top, low = (np.asarray(rgb, dtype=np.float32) for rgb in SKY_RGB[scene.sky])
    down = np.clip(canvas.y / (HORIZON * canvas.height), 0, 1)[..., None]
    canvas.rgb += top + down * (low - top)
    if scene.light is None:
        return
    x = canvas.x - LIGHT_X[scene.side or "centre"] * canvas.width - 0.025 * jitter.light_x
    y = canvas.y - LIGHT_Y * canvas.height - 0.015 * jitter.light_y
    shape = disc(x, y, LIGHT_RADIUS)
    if scene.light == "moon":
        shape = np.maximum(shape, -disc(x - 0.055, y + 0.02, LIGHT_RADIUS * 0.85))
    canvas.fill(shape, LIGHT_RGB[scene.light])


def paint_ground(canvas: Canvas, scene: Scene, jitter: Jitter) -> None:
    dimmed = np.float32(GROUND_DIMMED[scene.sky])
    far, near = (np.asarray(rgb, dtype=np.float32) * dimmed for rgb in GROUND_RGB[scene.ground])
    across = canvas.x / canvas.width * 2 * np.pi
    horizon = HORIZON + 0.015 * jitter.horizon
    if scene.ground == "hills":
        ridge = horizon - 0.03 + 0.035 * np.sin(1.5 * across + 0.8 * jitter.ridge)
        swell = horizon + 0.10 + 0.03 * np.sin(across + 2.0 + 0.8 * jitter.swell)
    elif scene.ground == "sand":
        ridge = np.full_like(across, horizon)
        swell = horizon + 0.14 + 0.025 * np.sin(0.8 * across + 1.0 + 0.8 * jitter.swell)
    else:
        ridge = np.full_like(across, horizon)
        swell = np.full_like(across, horizon + 0.13 + 0.01 * jitter.swell)
    canvas.fill(ridge * canvas.height - canvas.y, far)
    canvas.fill(swell * canvas.height - canvas.y, near)


def draw(
    scene: Scene, width: int, height: int, jitter: Jitter = Jitter(), window: Window | None = None
) -> Array:
    """The picture, or the part of it in `window`: `(rows, columns, 3)` RGB within 0 to 1."""
    canvas = Canvas(width, height, window)
    paint_sky(canvas, scene, jitter)
    paint_ground(canvas, scene, jitter)
    if scene.thing is not None and scene.colour is not None and scene.side is not None:
        x, y, size = object_frame(canvas, scene.side, jitter)
        for distance, colour in object_parts(scene.thing, COLOUR_RGB[scene.colour], x, y):
            canvas.fill(distance * np.float32(size), colour)
    return np.clip(canvas.rgb, 0, 1)
