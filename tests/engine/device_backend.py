"""A backend that samples, for tests: it says what its rows asked for, and hands over what it is told to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from model_backend import ModelBackend

from neuron_server.backend import DecodeRow, DeviceSampling, Output, PrefillRow

#: The tokens (n,) of a call from its slots and their logits (n, V).
Choose = Callable[[list[int], np.ndarray], np.ndarray]


def likeliest(_slots: list[int], logits: np.ndarray) -> np.ndarray:
    return logits.argmax(axis=1)


class DeviceBackend(ModelBackend):
    """``asked``: slot -> the sampling of its row, one dictionary per call."""

    def __init__(
        self, *args: object, max_top_k: int = 16, choose: Choose = likeliest, **options: object
    ) -> None:
        super().__init__(*args, **options)
        self.info = replace(self.info, output="tokens", max_top_k=max_top_k, can_score_prompt=False)
        self.choose = choose
        self.asked: list[dict[int, DeviceSampling]] = []

    def prefill(self, rows: Sequence[PrefillRow]) -> Output:
        return self._tokens(rows, super().prefill(rows))

    def decode(self, rows: Sequence[DecodeRow]) -> Output:
        return self._tokens(rows, super().decode(rows))

    def _tokens(self, rows: Sequence[PrefillRow] | Sequence[DecodeRow], output: Output) -> Output:
        self.asked.append({row.slot: row.sampling for row in rows})
        tokens = self.choose([row.slot for row in rows], output.logits).astype(np.int64)
        return Output(np.empty((len(rows), 0), np.float32), tokens=tokens)
