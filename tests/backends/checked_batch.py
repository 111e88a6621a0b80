"""A batch whose every row is compared with the same text alone."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np

from neuron_server.backend import Backend, DecodeRow, PrefillRow

#: Logits (L, V) after each token of a text that nothing else shares a batch with.
Alone = Callable[[list[int]], np.ndarray]


class Batch:
    """The texts that the slots hold, and calls that keep them in step with the backend.

    The logits of every row are kept, and checked when its slot is freed or the test ends.
    """

    def __init__(self, backend: Backend, alone: Alone) -> None:
        self.backend = backend
        self.alone = alone
        self.texts: dict[int, list[int]] = {}
        self.seen: dict[int, dict[int, np.ndarray]] = {}  # slot -> length -> (V,)
        self.rng = random.Random(0)

    def random_tokens(self, n: int) -> list[int]:
        return [self.rng.randrange(self.backend.info.vocab_size) for _ in range(n)]

    def add(self, *joining: tuple[int, int]) -> None:
        """Prefill (slot, length) pairs with random tokens, in this order."""
        new = {slot: self.random_tokens(length) for slot, length in joining}
        rebuild = self.backend.info.prefill_mode == "rebuild"
        rows = [PrefillRow(s, t) for s, t in (new | (self.texts if rebuild else {})).items()]
        logits = self.backend.prefill(rows).logits
        self.texts |= new
        self._keep([row.slot for row in rows], logits)

    def step(self, *starting: int) -> None:
        """Decode all live slots, and ``starting`` free ones at position 0, in a random order."""
        slots = [*self.texts, *starting]
        self.rng.shuffle(slots)
        rows = [
            DecodeRow(s, self.rng.randrange(self.backend.info.vocab_size), len(self.texts.get(s, [])))
            for s in slots
        ]
        logits = self.backend.decode(rows).logits
        for row in rows:
            self.texts.setdefault(row.slot, []).append(row.token)
        self._keep(slots, logits)

    def free(self, *slots: int) -> None:
        self.backend.release(slots)
        for slot in slots:
            self.check(slot)
            del self.texts[slot]

    def _keep(self, slots: list[int], logits: np.ndarray) -> None:
        assert logits.dtype == np.float32
        assert logits.shape == (len(slots), self.backend.info.vocab_size)
        for slot, row in zip(slots, logits, strict=True):
            self.seen.setdefault(slot, {})[len(self.texts[slot])] = row.copy()

    def check(self, slot: int) -> None:
        seen = self.seen.pop(slot)
        expected = self.alone(self.texts[slot])
        for length, row in seen.items():
            np.testing.assert_allclose(
                row, expected[length - 1], atol=2e-4, rtol=2e-4, err_msg=f"slot {slot} after {length} tokens"
            )
