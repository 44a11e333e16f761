"""How a sequence of tokens is shared by the members of a group.

Text tokens come first, image tokens after them, and each member takes one contiguous chunk of the
whole: so most members hold tokens of one kind, and need the weights of one kind in a model that has
different weights for text and image. Chunks are equally long, as the collectives want it; what is
missing at the very end is padded, and the padding is fewer tokens than there are members.

Parts are contiguous in memory: where they are not, layers round otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F


@dataclass(frozen=True)
class Shard:
    """One member's part of a sequence of `text` + `image` tokens shared by `degree` members."""

    text: int
    image: int
    degree: int
    rank: int

    @property
    def total(self) -> int:
        """Tokens in the sequence, without padding."""
        return self.text + self.image

    @property
    def chunk(self) -> int:
        """Tokens of each member, with padding."""
        return -(-self.total // self.degree)

    @property
    def text_slice(self) -> slice:
        """Which text tokens this member has; maybe none."""
        begin = self.rank * self.chunk
        return slice(min(begin, self.text), min(begin + self.chunk, self.text))

    @property
    def image_slice(self) -> slice:
        """Which image tokens this member has; maybe none."""
        begin = self.rank * self.chunk - self.text
        return slice(min(max(begin, 0), self.image), min(max(begin + self.chunk, 0), self.image))

    @property
    def padding(self) -> int:
        """How many tokens this member has to add to its image tokens."""
        text, image = self.text_slice, self.image_slice
        return self.chunk - (text.stop - text.start) - (image.stop - image.start)

    def take_text(self, tokens: torch.Tensor, dim: int = 1) -> torch.Tensor:
        """This member's part of a tensor that has the text tokens along `dim`."""
        part = self.text_slice
        return tokens.narrow(dim, part.start, part.stop - part.start).contiguous()

    def take_image(self, tokens: torch.Tensor, dim: int = 1) -> torch.Tensor:
        """This member's part of a tensor that has the image tokens along `dim`, with zeros for padding."""
        part = self.image_slice
        mine = tokens.narrow(dim, part.start, part.stop - part.start)
        if not self.padding:
            return mine.contiguous()
        return F.pad(mine, [0, 0] * (tokens.ndim - 1 - dim) + [0, self.padding])

    def gather_image(self, mine: torch.Tensor, pg: dist.ProcessGroup | None) -> torch.Tensor:
        """All image tokens, from every member's part: [batch, own image tokens and padding, channels].

        A collective: every member of `pg` calls it. A group of one needs no process group.
        """
        if pg is None:
            return mine
        # Members have different numbers of image tokens; with zeros in place of text they are alike.
        mine = F.pad(mine, [0, 0, self.chunk - mine.shape[1], 0]).contiguous()
        batch, _, channels = mine.shape
        everything = mine.new_empty(self.degree * batch, self.chunk, channels)
        dist.all_gather_single(everything, mine, group=pg)
        sequence = everything.unflatten(0, (self.degree, batch)).transpose(0, 1).flatten(1, 2)
        return sequence[:, self.text : self.total]

    def keys_in_block(self, block: int, blocks: int, *, image_only: bool = False) -> slice:
        """Which of a block's keys are real, when the sequence is cut into `blocks` blocks for a ring; with
        `image_only`, which are of image tokens."""
        length = self.chunk * self.degree // blocks
        begin = block * length
        first = self.text if image_only else 0
        return slice(min(max(first - begin, 0), length), min(max(self.total - begin, 0), length))
