"""The two tokenizers of the built-in model, made of the words that its captions use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer, T5TokenizerFast

from model.captions import caption_words

WORDS: tuple[str, ...] = tuple(sorted(caption_words()))
PUNCTUATION = (",", ".")


def t5_tokenizer(length: int, words: Sequence[str] = WORDS) -> T5TokenizerFast:
    """A T5 tokenizer with one piece a word; a word that it does not know is one `<unk>`.

    `length` is the number of text tokens that the transformer sees, kept as `model_max_length`.
    """
    # Both spellings of a word are pieces, since T5's tokenizer keeps the case.
    spellings = dict.fromkeys(f"▁{form}" for word in words for form in (word, word.capitalize()))
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(piece, -1.0) for piece in (*spellings, *PUNCTUATION)]
    return T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=length)


def joined(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    """The pieces of a word after a merge: every such pair of neighbours is one piece."""
    out: list[str] = []
    for piece in pieces:
        if out and (out[-1], piece) == pair:
            out[-1] += piece
        else:
            out.append(piece)
    return out


def learn_merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """Byte-pair encoding until each word is one piece, the most frequent pair first.

    `tokenizers` has a trainer for this, but its order of equal pairs differs from run to run.
    """
    spelled = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges: list[tuple[str, str]] = []
    while counts := Counter(pair for pieces in spelled for pair in pairwise(pieces)):
        merges.append(max(counts, key=lambda pair: (counts[pair], pair)))
        spelled = [joined(pieces, merges[-1]) for pieces in spelled]
    return merges


def clip_tokenizer(length: int, words: Sequence[str] = WORDS) -> CLIPTokenizer:
    """A CLIP tokenizer (byte-level BPE) whose merges join each known word into one token."""
    merges = learn_merges(words)
    # Every byte may also end a word: CLIP's unknown token is its end token, and would cut a prompt short.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *("".join(pair) for pair in merges)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=length)
