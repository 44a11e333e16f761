"""Blocks are aligned powers of two within a node, and degrees fit just when brute force places them."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.placement import Blocks, layout_of, mask_of
from scheduler.problem import Gpu

slots = st.sets(st.integers(0, 15), min_size=1).map(sorted)


def gpus(numbers, node_size=8):
    return [Gpu(slot, 0.0, f"node{slot // node_size}") for slot in numbers]


@given(slots)
def test_blocks_are_aligned_whole_and_in_one_node(numbers):
    layout = layout_of(gpus(numbers))
    for degree, blocks in layout.blocks.items():
        for block in blocks:
            members = layout.members[block]
            assert len(members) == degree == block.bit_count()
            assert members[0] % degree == 0
            assert members == tuple(range(members[0], members[0] + degree))
            assert len({slot // 8 for slot in members}) == 1
            assert set(members) <= set(numbers)
            every = [other for blocks in layout.blocks.values() for other in blocks]
            assert sorted(layout.overlapping[block]) == sorted(b for b in every if b & block)
    assert layout.max_degree == max(layout.blocks)


def place(blocks: Blocks, degrees: tuple[int, ...]) -> bool:
    """Brute force: whether blocks of all degrees can be had together, in any places."""
    choices = [blocks.available(degree) for degree in degrees]
    return any(len(set().union(*c)) == sum(degrees) for c in itertools.product(*choices))


@settings(max_examples=200, deadline=None)
@given(slots, st.lists(st.sampled_from([1, 2, 4, 8]), min_size=1, max_size=4))
def test_degrees_fit_just_when_brute_force_places_them(numbers, degrees):
    blocks = Blocks(gpus(numbers))
    assert blocks.fits(degrees) == place(blocks, tuple(degrees))


@given(slots, st.lists(st.sampled_from([1, 2, 4, 8]), max_size=6))
def test_widest_first_places_all_that_fit(numbers, degrees):
    blocks = Blocks(gpus(numbers))
    fits = blocks.fits(degrees)
    for degree in sorted(degrees, reverse=True):
        block = blocks.find(degree)
        if block is None:
            assert not fits
            return
        blocks.take(block)
    assert fits


def test_a_request_keeps_its_slots_and_large_blocks_are_kept_whole():
    blocks = Blocks(gpus(range(8)))
    assert blocks.find(2, held=(4, 5, 6, 7)) in [(4, 5), (6, 7)]
    blocks.take((0,))
    assert blocks.find(1) == (1,)
    assert blocks.find(4) == (4, 5, 6, 7)


def test_no_slot_is_handed_out_twice():
    blocks = Blocks(gpus(range(4)))
    blocks.take((0, 1))
    with pytest.raises(ValueError, match="free"):
        blocks.take((1,))
    assert blocks.free == {2, 3}
    assert mask_of((0, 3)) == 0b1001
