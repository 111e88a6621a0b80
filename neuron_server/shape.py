"""The static shape: ``B`` slots of ``T`` tokens, and all arithmetic on it.

Everything that is compiled, allocated or admitted follows from these two numbers. They are fixed before the
model loads and never change while a process lives.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StaticShape:
    """``batch_size`` (B) slots of ``max_length`` (T) tokens each, prompt plus new tokens.

    Raises ``ValueError`` when there is no slot, or no room for one prompt token and one new token.
    """

    batch_size: int
    max_length: int

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.max_length < 2:
            raise ValueError(f"max_length must be at least 2, got {self.max_length}")

    @property
    def total_tokens(self) -> int:
        """B x T: every token position the cache holds."""
        return self.batch_size * self.max_length

    def room(self, tokens: int) -> int:
        """New tokens that still fit a slot that holds ``tokens``; never negative."""
        return max(0, self.max_length - tokens)

    def cache_bytes(self, *, layers: int, kv_heads: int, head_dim: int, itemsize: int) -> int:
        """Bytes of keys and values for all slots: 2 x layers x B x kv_heads x T x head_dim x itemsize."""
        return 2 * layers * self.batch_size * kv_heads * self.max_length * head_dim * itemsize

    def __str__(self) -> str:
        return f"{self.batch_size} x {self.max_length}"
