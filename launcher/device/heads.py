"""How attention heads are shared out to the cores of one replica.

The rule is that of optimum-neuron 0.4.5 (its ``get_shardable_head_counts``): attention heads are padded with
zeros to a multiple of the tensor-parallel degree; KV heads that the degree does not divide are replicated to
one per core where the degree is a multiple of them, else to as many as there are attention heads.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HeadSplit:
    """``heads`` and ``kv_heads`` as the device has them, all cores of a replica together."""

    heads: int
    kv_heads: int
    notes: tuple[str, ...] = ()

    def kv_heads_per_core(self, tensor_parallel: int) -> int:
        """KV heads that each core caches; ``tensor_parallel`` is the degree that was split for."""
        return self.kv_heads // tensor_parallel


def split_heads(heads: int, kv_heads: int, tensor_parallel: int) -> HeadSplit:
    """What ``heads`` attention heads and ``kv_heads`` KV heads become on ``tensor_parallel`` cores."""
    padded = -(-heads // tensor_parallel) * tensor_parallel
    notes = []
    if padded != heads:
        notes.append(
            f"{heads} attention heads are padded to {padded}, which {tensor_parallel} cores divide (the "
            "rule of optimum-neuron's source; not verified on a device by this project)"
        )
    cached = kv_heads
    if heads == kv_heads:
        cached = padded
    elif kv_heads % tensor_parallel:
        cached = tensor_parallel if tensor_parallel % kv_heads == 0 else padded
        notes.append(f"{kv_heads} KV heads are replicated to {cached}")
    return HeadSplit(padded, cached, tuple(notes))
