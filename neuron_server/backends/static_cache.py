"""The KV cache of the static batch: allocated once, [B, heads, T, head_dim] per layer, never copied.

Slots are aligned left, so the index of a key is its position. The model's own attention calls ``update``;
what that writes, and which view of the cache it gives back, follows from the window set before each forward:
a prefill writes the columns of one slot, a decode one column per row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What one layer caches: the keys' and values' heads and head sizes, and their type."""

    key_heads: int
    key_dim: int
    value_heads: int
    value_dim: int
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class PrefillWindow:
    """One slot's columns ``0 .. width - 1``."""

    slot: int
    width: int

    @property
    def seen(self) -> int:
        """Tokens before this forward."""
        return 0


@dataclass(frozen=True, slots=True)
class DecodeWindow:
    """Rows ``first .. last - 1``, each writing its own column; attention sees columns ``0 .. width - 1``."""

    first: int
    last: int
    width: int
    rows: torch.Tensor  # (n,)
    positions: torch.Tensor  # (n,)

    @property
    def seen(self) -> int:
        """Tokens before this forward, of the longest row that the width allows."""
        return self.width - 1


class StaticLayer(CacheLayerMixin):
    """Keys and values of one layer for all slots."""

    keys: torch.Tensor  # (B, heads, T, head_dim)
    values: torch.Tensor
    is_compileable = False
    is_sliding = False

    def __init__(self, shape: LayerShape, batch_size: int, max_length: int) -> None:
        self.keys = torch.zeros(batch_size, shape.key_heads, max_length, shape.key_dim, dtype=shape.dtype)
        self.values = torch.zeros(
            batch_size, shape.value_heads, max_length, shape.value_dim, dtype=shape.dtype
        )
        self.is_initialized = True
        self.window: PrefillWindow | DecodeWindow = PrefillWindow(0, 0)

    def lazy_initialization(self, key_states: torch.Tensor) -> None:
        """Nothing is lazy here."""

    def update(
        self,
        key_states: torch.Tensor,  # (n, heads, q, head_dim)
        value_states: torch.Tensor,
        cache_kwargs: dict[str, Any] | None = None,  # noqa: ARG002  # Any: transformers' signature
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new states where the window says; return what attention shall see.

        Advanced indexing, not ``scatter_``: that is some hundred times slower on CPU.
        """
        window = self.window
        if isinstance(window, PrefillWindow):
            self.keys[window.slot, :, : window.width] = key_states[0]
            self.values[window.slot, :, : window.width] = value_states[0]
            return key_states, value_states
        self.keys[window.rows, :, window.positions] = key_states[:, :, 0]
        self.values[window.rows, :, window.positions] = value_states[:, :, 0]
        span = slice(window.first, window.last)
        return self.keys[span, :, : window.width], self.values[span, :, : window.width]

    def get_mask_sizes(self, cache_position: torch.Tensor) -> tuple[int, int]:  # noqa: ARG002
        """(number of keys, offset of the first), for models that build their own mask."""
        return self.window.width, 0

    def get_seq_length(self) -> int:
        """Tokens seen before this forward."""
        return self.window.seen

    def get_max_cache_shape(self) -> int:
        """T."""
        return int(self.keys.shape[2])


class StaticKVCache(Cache):
    """All layers. ``view`` must be called before each forward."""

    def __init__(self, shapes: Sequence[LayerShape], batch_size: int, max_length: int) -> None:
        self.static_layers = [StaticLayer(shape, batch_size, max_length) for shape in shapes]
        super().__init__(layers=list(self.static_layers))

    def view(self, window: PrefillWindow | DecodeWindow) -> None:
        """Choose what the next forward writes and sees."""
        for layer in self.static_layers:
            layer.window = window

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(t.nbytes for layer in self.static_layers for t in (layer.keys, layer.values))
