"""Captions say what is true, no more, in words that the tokenizers know."""

from __future__ import annotations

import numpy as np
import pytest

from model.captions import (
    KINDS,
    caption,
    facts,
    held_out_captions,
    random_scene,
    usual,
    with_unknown_words,
)
from model.layout import TEXT_LENGTH
from model.scenes import COLOURS
from model.tokenizers import WORDS, t5_tokenizer


def captions(count: int, seed: int = 0) -> list:
    random = np.random.default_rng(seed)
    return [caption(random_scene(random), random) for _ in range(count)]


def test_statements_are_facts_and_what_is_left_out_is_usual() -> None:
    for made in captions(500):
        true = facts(made.scene)
        assert made.statements.items() <= true.items()
        for kind in KINDS:
            if kind not in made.statements:
                assert true.get(kind) == usual(made.scene, kind), made


def test_the_text_names_the_stated_colour_and_no_other() -> None:
    # Skies, grounds and lights have colour words of their own, so look just before the object.
    nouns = ("house", "cottage", "home", "tree", "boat", "sailboat", "ship", "car", "automobile")
    for made in captions(500):
        words = made.text.lower().replace(",", "").replace(".", "").split()
        before = [words[words.index(noun) - 1] for noun in nouns if noun in words]
        named = [{"violet": "purple"}.get(word, word) for word in before]
        assert [word for word in named if word in COLOURS] == [
            made.statements[kind] for kind in ("colour",) if kind in made.statements
        ], made


def test_captions_fit_the_tokenizer_and_use_its_words() -> None:
    tokenizer = t5_tokenizer(TEXT_LENGTH)
    for made in captions(500):
        ids = tokenizer(made.text).input_ids
        assert len(ids) <= TEXT_LENGTH, made.text
        assert tokenizer.unk_token_id not in ids, made.text


def test_wording_varies() -> None:
    scene = captions(1)[0].scene
    random = np.random.default_rng(0)
    assert len({caption(scene, random).text for _ in range(100)}) > 50


def test_training_never_sees_a_held_out_scene() -> None:
    assert not any(made.scene.held_out for made in captions(500))
    assert all(made.scene.held_out for made in held_out_captions(50))
    assert held_out_captions(5) == held_out_captions(5)


def test_unknown_words_are_added_and_none_is_lost() -> None:
    random = np.random.default_rng(0)
    text = "a red house on the sand"
    for _ in range(20):
        longer = with_unknown_words(text, random).split()
        assert len(text.split()) < len(longer) <= len(text.split()) + 2
        assert set(text.split()) <= set(longer)


@pytest.mark.parametrize("word", ["moon", "left", "violet", "cottage", "night"])
def test_words_of_the_language_are_known(word: str) -> None:
    assert word in WORDS
