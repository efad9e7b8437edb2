"""Buffered cache layers hold exactly what concatenating and cropping would."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import flashback.engines.cache.buffer as cache_module
from flashback.engines.cache.layers import BufferedLayer, BufferedSlidingLayer

WINDOW = 8
APPEND = st.tuples(st.just("append"), st.integers(1, 12))
CUT = st.tuples(st.just("cut"), st.floats(0, 1))
STEPS = st.lists(st.one_of(APPEND, CUT), max_size=40)


@pytest.fixture(autouse=True, scope="module")
def _little_room() -> object:
    """So that buffers fill up within a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache_module, "_SPARE", 3)
        yield


def states(start: int, count: int) -> Tensor:
    """(1, 2, count, 3) values that tell their position."""
    positions = torch.arange(start, start + count, dtype=torch.float32)
    return positions[None, None, :, None].expand(1, 2, count, 3)


@given(steps=STEPS, sliding=st.booleans())
def test_what_new_positions_see_is_what_was_appended_and_not_cut(
    steps: list[tuple[str, float]], sliding: bool
) -> None:
    layer = BufferedSlidingLayer(WINDOW) if sliding else BufferedLayer()
    length = 0
    for kind, amount in steps:
        if kind == "cut":
            target = int(amount * length)
            if not layer.reaches(target):
                assert sliding
                assert layer._buffer.first > max(target - (WINDOW - 1), 0)  # really gone
                continue
            layer.crop(target - length)
            length = target
        else:
            new = int(amount)
            visible_length, visible_start = layer.get_mask_sizes(new)
            keys, values = layer.update(states(length, new), -states(length, new))
            length += new
            first = max(length - new - (WINDOW - 1), 0) if sliding else 0
            assert torch.equal(keys, states(first, length - first))
            assert torch.equal(values, -keys)
            assert (visible_start, visible_length) == (first, length - first)
        assert layer.get_seq_length() == length


@given(length=st.integers(1, 60), cut=st.integers(0, 60))
def test_without_cuts_between_every_depth_is_reached(length: int, cut: int) -> None:
    layer = BufferedSlidingLayer(WINDOW)
    for position in range(length):
        layer.update(states(position, 1), states(position, 1))
    assert layer.reaches(min(cut, length))


def test_a_sliding_window_forgets_what_it_will_not_need() -> None:
    layer = BufferedSlidingLayer(WINDOW)
    for position in range(0, 3000, 10):
        layer.update(states(position, 10), states(position, 10))
        layer.crop(0)
    held = layer._buffer._keys
    assert held is not None
    assert held.shape[-2] < 60
    assert layer.reaches(3000)
    assert not layer.reaches(2900)


def test_appending_a_token_copies_nothing() -> None:
    layer = BufferedLayer()
    keys, _ = layer.update(states(0, 100), states(0, 100))
    again, _ = layer.update(states(100, 1), states(100, 1))
    assert again.data_ptr() == keys.data_ptr()
