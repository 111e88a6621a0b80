"""Garbage, written exactly where a real device would write it, so that a wrong scheduler is wrong here too.

The noise is large and finite: a NaN would show itself at once, which garbage on a device does not.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from neuron_server.backends.static_cache import StaticKVCache

#: Far beyond any key or value a model makes, and small enough for float16.
_SCALE = 100.0


class Poison:
    """Overwrites parts of a cache with noise; always the same noise, so that runs repeat."""

    def __init__(self, cache: StaticKVCache) -> None:
        self._cache = cache
        generator = torch.Generator().manual_seed(0)
        shapes = {t.shape[1:] for layer in cache.static_layers for t in (layer.keys, layer.values)}
        self._noise = {
            shape: torch.randn(shape, generator=generator).mul_(_SCALE)  # (heads, T, head_dim)
            for shape in sorted(shapes)
        }

    def columns(self, slot: int, start: int, stop: int) -> None:
        """Columns ``start .. stop - 1`` of one slot: the padding of a prefill."""
        for layer in self._cache.static_layers:
            for cells in (layer.keys, layer.values):
                noise = self._noise[cells.shape[1:]]
                cells[slot, :, start:stop] = noise[:, start:stop].to(cells.dtype)

    def slots(self, slots: Sequence[int]) -> None:
        """Whole slots: released, or left out of a rebuild."""
        for slot in slots:
            self.columns(slot, 0, self._cache.static_layers[0].get_max_cache_shape())

    def step(self, slots: Sequence[int], position: int) -> None:
        """What a decode does to free slots: a token at the first row's position, or at 0 (legacy)."""
        for slot in slots:
            self.columns(slot, 0, 1)
            self.columns(slot, position, position + 1)
