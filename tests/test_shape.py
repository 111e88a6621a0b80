"""All arithmetic on B x T."""

from __future__ import annotations

import dataclasses

import pytest

from neuron_server.shape import StaticShape


@pytest.mark.parametrize(("batch_size", "max_length"), [(1, 2), (16, 1024), (1, 10**6)])
def test_a_shape_holds_b_times_t_tokens(batch_size, max_length):
    assert StaticShape(batch_size, max_length).total_tokens == batch_size * max_length


@pytest.mark.parametrize("batch_size", [0, -1])
def test_there_is_at_least_one_slot(batch_size):
    with pytest.raises(ValueError, match=f"batch_size must be at least 1, got {batch_size}"):
        StaticShape(batch_size, 128)


@pytest.mark.parametrize("max_length", [1, 0, -5])
def test_a_slot_holds_at_least_one_prompt_token_and_one_new_one(max_length):
    with pytest.raises(ValueError, match=f"max_length must be at least 2, got {max_length}"):
        StaticShape(1, max_length)


def test_room_is_what_is_left_of_a_slot_and_never_negative():
    shape = StaticShape(4, 128)
    assert [shape.room(tokens) for tokens in (0, 1, 127, 128, 129)] == [128, 127, 1, 0, 0]


def test_cache_bytes_of_gpt2_at_16_x_1024_in_float32():
    # 12 layers of 12 heads of 64: 2 x 12 x 16 x 12 x 1024 x 64 x 4 bytes = 1.125 GiB
    assert StaticShape(16, 1024).cache_bytes(layers=12, kv_heads=12, head_dim=64, itemsize=4) == 1207959552


def test_cache_bytes_grow_with_kv_heads_not_query_heads():
    shape = StaticShape(1, 4096)
    grouped = shape.cache_bytes(layers=32, kv_heads=8, head_dim=128, itemsize=2)
    assert grouped == 512 * 2**20
    assert shape.cache_bytes(layers=32, kv_heads=32, head_dim=128, itemsize=2) == 4 * grouped


def test_a_shape_never_changes():
    with pytest.raises(dataclasses.FrozenInstanceError):
        StaticShape(1, 2).batch_size = 3  # type: ignore[misc]


def test_it_reads_like_the_documentation_writes_it():
    assert str(StaticShape(16, 1024)) == "16 x 1024"
