"""Every token of a sequence is with exactly one member."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from executor.sharding import Shard

lengths = st.tuples(st.integers(1, 60), st.integers(1, 120), st.integers(1, 16))


@given(lengths)
def test_members_take_all_tokens_once_and_chunks_are_alike(sequence):
    text, image, degree = sequence
    tokens = torch.arange(1, text + image + 1).reshape(1, -1, 1)
    chunks = []
    for rank in range(degree):
        shard = Shard(text, image, degree, rank)
        mine = [shard.take_text(tokens[:, :text]), shard.take_image(tokens[:, text:])]
        chunks.append(torch.cat(mine, dim=1))
        assert chunks[-1].shape[1] == shard.chunk
    everything = torch.cat(chunks, dim=1)
    assert torch.equal(everything[:, : text + image], tokens)
    # The padding is at the very end, and less than one token a member.
    padding = everything[:, text + image :]
    assert padding.shape[1] < degree
    assert not padding.any()


@given(lengths, st.data())
def test_the_blocks_of_a_ring_have_all_real_keys(sequence, data):
    text, image, degree = sequence
    blocks = data.draw(st.sampled_from([b for b in range(1, degree + 1) if degree % b == 0]))
    shard = Shard(text, image, degree, rank=0)
    length = shard.chunk * degree // blocks
    for image_only, expected in ((False, range(text + image)), (True, range(text, text + image))):
        keys = [shard.keys_in_block(block, blocks, image_only=image_only) for block in range(blocks)]
        real = [block * length + i for block, part in enumerate(keys) for i in range(length)[part]]
        assert real == list(expected)
        assert all(0 <= part.start <= part.stop <= length for part in keys)


def test_positions_are_shared_like_tokens():
    ids = torch.arange(10.0).reshape(10, 1).expand(10, 3)
    shard = Shard(text=3, image=10, degree=2, rank=1)
    assert shard.take_image(ids, dim=0)[:, 0].tolist() == [4, 5, 6, 7, 8, 9, 0]
    assert shard.take_text(ids[:3], dim=0).shape == (0, 3)


def test_one_member_has_everything_and_gathers_nothing():
    shard = Shard(text=3, image=10, degree=1, rank=0)
    tokens = torch.randn(2, 10, 4)
    assert shard.take_image(tokens) is not None
    assert shard.gather_image(tokens, None) is tokens
