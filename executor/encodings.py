"""Encoded prompts, kept so that the text encoders run once for each: people try a prompt many times."""

from collections import OrderedDict
from collections.abc import Callable

from executor.latents import Condition


class Encodings:
    """A cache in front of a function that encodes a text: the ones used last, up to `limit` bytes.

    One thread uses it, the one that owns the device. What it gives is shared and never written to.

    Attributes:
        hits, misses: how often a text was there, and how often not.
        nbytes: memory of what is kept.
    """

    def __init__(self, encode: Callable[[str], Condition], limit: int) -> None:
        self.hits = self.misses = self.nbytes = 0
        self._encode = encode
        self._limit = limit
        self._kept: OrderedDict[str, Condition] = OrderedDict()

    def __call__(self, text: str) -> Condition:
        """What the text encoders make of a text."""
        if text in self._kept:
            self.hits += 1
            self._kept.move_to_end(text)
            return self._kept[text]
        self.misses += 1
        condition = self._encode(text)
        size = _nbytes(condition)
        if size <= self._limit:
            self._kept[text] = condition
            self.nbytes += size
        while self.nbytes > self._limit:
            _, oldest = self._kept.popitem(last=False)
            self.nbytes -= _nbytes(oldest)
        return condition


def _nbytes(condition: Condition) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in condition.values())
