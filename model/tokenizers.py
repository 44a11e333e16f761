"""The two tokenizers of the built-in model, made of the words that its captions use."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
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


def clip_tokenizer(length: int, words: Sequence[str] = WORDS) -> CLIPTokenizer:
    """A CLIP tokenizer (byte-level BPE) whose merges join each known word into one token."""
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=100_000, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    trained.train_from_iterator([*words, *PUNCTUATION], trainer)
    vocab = dict(trained.get_vocab())
    # Every byte may also end a word: CLIP's unknown token is its end token, and would cut a prompt short.
    for letter in alphabet:
        vocab.setdefault(f"{letter}</w>", len(vocab))
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocab[special] = len(vocab)
    merges = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=length)
