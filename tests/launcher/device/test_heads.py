"""Sharing heads out to cores; the expected numbers were computed by optimum-neuron 0.4.5's own function."""

from __future__ import annotations

import pytest

from launcher.device.heads import split_heads


@pytest.mark.parametrize(
    ("heads", "kv_heads", "tensor_parallel", "expected"),
    [
        pytest.param(32, 8, 8, (32, 8), id="llama 8B, one KV head for each core"),
        pytest.param(32, 8, 2, (32, 8), id="several KV heads for each core"),
        pytest.param(64, 8, 24, (72, 24), id="llama 70B, padded and replicated"),
        pytest.param(28, 4, 8, (32, 8), id="qwen2.5 7B, padded and replicated"),
        pytest.param(12, 12, 8, (16, 16), id="every head has its KV head: padded alike"),
        pytest.param(40, 10, 8, (40, 40), id="KV heads that fit no degree: as many as heads"),
        pytest.param(40, 10, 2, (40, 10), id="KV heads that the degree divides"),
        pytest.param(14, 2, 24, (24, 24), id="more cores than heads"),
        pytest.param(7, 1, 1, (7, 1), id="one core changes nothing"),
    ],
)
def test_heads_on_the_device(heads, kv_heads, tensor_parallel, expected):
    split = split_heads(heads, kv_heads, tensor_parallel)
    assert (split.heads, split.kv_heads) == expected


def test_padding_and_replication_are_said():
    notes = " ".join(split_heads(28, 4, 8).notes)
    assert "28 attention heads are padded to 32" in notes
    assert "4 KV heads are replicated to 8" in notes
    assert split_heads(32, 8, 8).notes == ()
