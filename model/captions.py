"""Captions for scenes, in varied wording, and the statements that each caption makes.

A caption may leave a fact out only where it is the usual one (`usual`), so that every caption has one
right picture: no side means the middle, no light means none, a boat is usually on the sea.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from model.scenes import COLOURS, GROUNDS, LIGHTS, OBJECTS, SIDES, SKIES, Scene

MAX_PIECES = 23  # words and punctuation marks; with T5's end token they are the 24 tokens of the model
KINDS = ("sky", "ground", "light", "object", "colour", "side")

SKY_WORDS = {
    "day": ("by day", "during the day", "in the daytime", "on a clear day", "under a blue sky"),
    "dusk": ("at dusk", "at sunset", "in the evening", "under an evening sky", "in evening light"),
    "night": ("at night", "by night", "during the night", "at midnight", "under a dark sky"),
}
LIGHT_WORDS = {
    "sun": ("under the sun", "under a yellow sun", "with a bright sun", "with the sun above", "in the sun"),
    "moon": (
        "under the moon",
        "under a white moon",
        "with a bright moon",
        "with the moon above",
        "by the moon",
    ),
}
GROUND_WORDS = {
    "hills": ("on the hills", "on green hills", "on a grassy hill", "in a green meadow", "on grass"),
    "sea": ("on the sea", "by the sea", "on the blue water", "on the ocean", "on the waves"),
    "sand": ("on the sand", "on a beach", "on a sandy shore", "in the desert", "on yellow sand"),
}
GROUND_NAMES = {
    "hills": ("the hills", "green hills", "a green meadow"),
    "sea": ("the sea", "the ocean", "the blue water"),
    "sand": ("the sand", "a sandy beach", "the desert"),
}
OBJECT_WORDS = {
    "house": ("house", "house", "cottage", "home"),
    "tree": ("tree",),
    "boat": ("boat", "boat", "sailboat", "ship"),
    "car": ("car", "car", "automobile"),
}
COLOUR_WORDS = {colour: (colour,) for colour in COLOURS} | {"purple": ("purple", "purple", "violet")}
SIDE_WORDS = {
    "left": ("on the left", "on the left side", "to the left", "at the left"),
    "right": ("on the right", "on the right side", "to the right", "at the right"),
    "centre": ("in the middle", "in the centre", "in the center"),
}
ADJECTIVES = ("", "", "", "", "little", "old", "lone")
OPENINGS = ("", "", "", "", "", "there is", "a picture of", "a painting of", "a drawing of", "a view of")

USUAL_COLOUR = {"house": "red", "tree": "green", "boat": "white", "car": "blue"}


@dataclass(frozen=True, slots=True)
class Caption:
    """A text, the scene it describes, and the facts that it states, by kind."""

    text: str
    scene: Scene
    statements: dict[str, str]


def usual(scene: Scene, kind: str) -> str | None:
    """What is drawn where a caption does not speak of `kind` and says the rest of `scene`."""
    if kind == "sky":
        return "night" if scene.light == "moon" else "day"
    if kind == "ground":
        return "sea" if scene.thing == "boat" else "hills"
    if kind == "colour":
        return USUAL_COLOUR[scene.thing] if scene.thing else None
    if kind == "side":
        return "centre" if scene.thing else None
    return None


def random_scene(random: np.random.Generator, *, held_out: bool | None = False) -> Scene:
    """A scene as captions speak of them: the usual ones more often, one in twelve without an object.

    `held_out` says from which part: False the training scenes, True the held-out ones, None both.
    """

    def pick(options: tuple[str, ...]) -> str:
        return str(random.choice(options))

    while True:
        light = pick(LIGHTS) if random.random() < 0.7 else None
        thing = pick(OBJECTS) if random.random() < 11 / 12 else None
        scene = Scene(
            pick(SKIES), pick(GROUNDS), light, thing, thing and pick(COLOURS), thing and pick(SIDES)
        )
        if random.random() < 0.25:
            scene = replace(scene, sky=usual(scene, "sky") or scene.sky)
        if random.random() < 0.2:
            scene = replace(scene, ground=usual(scene, "ground") or scene.ground)
        if random.random() < 0.1:
            scene = replace(scene, colour=usual(scene, "colour"))
        if held_out is None or scene.held_out == held_out:
            return scene


def facts(scene: Scene) -> dict[str, str]:
    """Everything that could be said of the scene, by kind."""
    named = {
        "sky": scene.sky,
        "ground": scene.ground,
        "light": scene.light,
        "object": scene.thing,
        "colour": scene.colour,
        "side": scene.side,
    }
    return {kind: value for kind, value in named.items() if value is not None}


def stated(scene: Scene, random: np.random.Generator) -> dict[str, str]:
    """The facts that one caption says: all that are unusual, and a chance share of the usual."""
    keep = {"sky": 0.5, "ground": 0.6, "colour": 0.7, "side": 0.4}
    return {
        kind: value
        for kind, value in facts(scene).items()
        if value != usual(scene, kind) or random.random() < keep[kind]
    }


def article(phrase: str) -> str:
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"


def word(said: dict[str, str], random: np.random.Generator) -> str:
    """One wording of the facts in `said`."""

    def pick(options: tuple[str, ...]) -> str:
        return str(random.choice(options))

    clauses = [
        pick(table[said[kind]])
        for kind, table in (("sky", SKY_WORDS), ("light", LIGHT_WORDS))
        if kind in said
    ]
    if "object" in said:
        words = (
            pick(ADJECTIVES),
            pick(COLOUR_WORDS[said["colour"]]) if "colour" in said else "",
            pick(OBJECT_WORDS[said["object"]]),
        )
        subject = article(" ".join(filter(None, words)))
        if "ground" in said:
            clauses.append(pick(GROUND_WORDS[said["ground"]]))
        if "side" in said:
            place = pick(SIDE_WORDS[said["side"]])
            if random.random() < 0.6:
                subject += f" {place}"
            else:
                clauses.append(place)
    else:
        subject = pick(GROUND_NAMES[said["ground"]]) if "ground" in said else "an empty scene"
    random.shuffle(clauses)
    lead = f"{clauses.pop()}, " if clauses and random.random() < 0.25 else ""
    opening = pick(OPENINGS) if not lead else ""
    comma = "," if clauses and random.random() < 0.25 else ""
    rest = "".join(f"{comma} {clause}" for clause in clauses)
    text = f"{lead}{opening} {subject}{rest}".replace("  ", " ").strip()
    if random.random() < 0.3:
        text = text[0].upper() + text[1:]
    return text + ("." if random.random() < 0.2 else "")


def caption(scene: Scene, random: np.random.Generator) -> Caption:
    """A caption of `scene` in random wording."""
    said = stated(scene, random)
    while True:
        text = word(said, random)
        if len(text.split()) + text.count(",") + text.count(".") <= MAX_PIECES:
            return Caption(text, scene, said)


def with_unknown_words(text: str, random: np.random.Generator) -> str:
    """The caption with one or two made-up words in it, which must do no harm."""
    words = text.split(" ")
    for _ in range(random.integers(1, 3)):
        letters = random.choice(list("abcdefghijklmnopqrstuvwxyz"), size=random.integers(2, 9))
        words.insert(int(random.integers(len(words) + 1)), "".join(letters))
    return " ".join(words)


def held_out_captions(count: int, *, seed: int = 2026) -> list[Caption]:
    """The test prompts: captions of scenes that were never trained on."""
    random = np.random.default_rng(seed)
    return [caption(random_scene(random, held_out=True), random) for _ in range(count)]


def caption_words() -> set[str]:
    """Every word that a caption can use."""

    def phrases() -> Iterator[str]:
        for table in (
            SKY_WORDS,
            LIGHT_WORDS,
            GROUND_WORDS,
            GROUND_NAMES,
            OBJECT_WORDS,
            COLOUR_WORDS,
            SIDE_WORDS,
        ):
            for options in table.values():
                yield from options
        yield from (*ADJECTIVES, *OPENINGS, "a an empty scene")

    return {word for phrase in phrases() for word in phrase.split()}
