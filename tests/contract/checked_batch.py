"""A batch whose every row is compared with the same text alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np

from neuron_server.backend import Backend, DecodeRow, Output, PrefillRow

#: Logits (L, V) after each token of a text that nothing else shares a batch with.
Alone = Callable[[list[int]], np.ndarray]

#: How far float32 logits may lie from those of another order of the same sums.
CLOSE = 2e-4


class Batch:
    """The texts that the slots hold, and calls that keep them in step with the backend.

    What it says of every row, logits or a greedy token, is kept, and checked when its slot is freed or the
    test ends.
    """

    def __init__(self, backend: Backend, alone: Alone) -> None:
        self.backend = backend
        self.alone = alone
        self.texts: dict[int, list[int]] = {}
        self.seen: dict[int, dict[int, np.ndarray]] = {}  # slot -> length -> (V,) logits, or () token
        self.rng = random.Random(0)

    def random_tokens(self, n: int) -> list[int]:
        return [self.rng.randrange(self.backend.info.vocab_size) for _ in range(n)]

    def add(self, *joining: tuple[int, int]) -> None:
        """Prefill (slot, length) pairs with random tokens, in this order."""
        new = {slot: self.random_tokens(length) for slot, length in joining}
        rebuild = self.backend.info.prefill_mode == "rebuild"
        rows = [PrefillRow(s, t) for s, t in (new | (self.texts if rebuild else {})).items()]
        output = self.backend.prefill(rows)
        self.texts |= new
        # The outputs of rows that were already running are to be ignored.
        self._keep([row.slot for row in rows], output, among=new)

    def step(self, *starting: int) -> None:
        """Decode all live slots, and ``starting`` free ones at position 0, in a random order."""
        slots = [*self.texts, *starting]
        self.rng.shuffle(slots)
        rows = [
            DecodeRow(s, self.rng.randrange(self.backend.info.vocab_size), len(self.texts.get(s, [])))
            for s in slots
        ]
        output = self.backend.decode(rows)
        for row in rows:
            self.texts.setdefault(row.slot, []).append(row.token)
        self._keep(slots, output, among=slots)

    def free(self, *slots: int) -> None:
        self.backend.release(slots)
        for slot in slots:
            self.check(slot)
            del self.texts[slot]

    def _keep(self, slots: list[int], output: Output, *, among: Sequence[int] | dict[int, list[int]]) -> None:
        for slot, row in zip(slots, said(self.backend, output, len(slots)), strict=True):
            if slot in among:
                self.seen.setdefault(slot, {})[len(self.texts[slot])] = row.copy()

    def check(self, slot: int) -> None:
        expected = self.alone(self.texts[slot])  # (L, V)
        for length, row in self.seen.pop(slot, {}).items():
            assert_agrees(row, expected[length - 1], f"slot {slot} after {length} tokens")


def said(backend: Backend, output: Output, rows: int) -> np.ndarray:
    """What a backend hands over, checked for shape and type: logits (n, V), or tokens (n,)."""
    if backend.info.samples:
        assert output.logits.shape == (rows, 0)
        assert output.tokens is not None
        assert output.tokens.dtype == np.int64
        assert output.tokens.shape == (rows,)
        return output.tokens
    assert output.tokens is None
    assert output.logits.dtype == np.float32
    assert output.logits.shape == (rows, backend.info.vocab_size)
    return output.logits


def assert_agrees(row: np.ndarray, expected: np.ndarray, message: str = "") -> None:
    """Whether logits (V,) are close to the expected, or a token () is the best of them."""
    if row.ndim:
        np.testing.assert_allclose(row, expected, atol=CLOSE, rtol=CLOSE, err_msg=message)
    else:
        behind = float(expected.max() - expected[int(row)])
        assert behind <= CLOSE, f"{message}: token {int(row)} is {behind} behind the best"
