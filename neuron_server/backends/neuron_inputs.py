"""The four tensors that a graph compiled by optimum-neuron takes, allocated once, rewritten for each call."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from neuron_server.backend import DecodeRow, DeviceSampling


class GraphInputs:
    """Keyword arguments of ``forward`` for up to ``rows`` rows of ``width`` tokens.

    Texts are padded on the right, with token 0 at position 0. A graph reads its logits at the first maximum
    of the positions, so zeros leave that at the last real token also for a text of one token; upstream's own
    padding, position 1, does not. What stands in the padding is hidden by the causal mask.
    """

    def __init__(self, rows: int, width: int) -> None:
        self._columns = np.arange(width, dtype=np.int64)
        self._tokens = np.zeros((rows, width), np.int64)
        self._positions = np.zeros((rows, width), np.int64)
        self._slots = np.arange(rows, dtype=np.int64)
        self._sampling = np.ones((rows, 3), np.float32)  # top_k, top_p, temperature; at first greedy
        # No attention mask: 0.3 would take one, and its own helper's is off by one column in each decode.
        self._tensors = {
            "input_ids": torch.from_numpy(self._tokens),  # (rows, width)
            "position_ids": torch.from_numpy(self._positions),  # (rows, width)
            "seq_ids": torch.from_numpy(self._slots),  # (rows,)
            "sampling_params": torch.from_numpy(self._sampling),  # (rows, 3)
        }

    def clear(self) -> None:
        """Every row token 0 at position 0, and greedy; slots stay."""
        self._tokens[:] = 0
        self._positions[:] = 0
        self._sampling[:] = 1

    def put_text(self, row: int, tokens: Sequence[int]) -> None:
        """A text at the positions from 0 on, padding after it."""
        length = len(tokens)
        self._tokens[row, :length] = tokens
        self._tokens[row, length:] = 0  # not the last prompt's, which may be someone else's
        self._positions[row, :length] = self._columns[:length]
        self._positions[row, length:] = 0

    def put_token(self, row: int, token: int, position: int) -> None:
        """The one token of a graph of width 1."""
        self._tokens[row, 0] = token
        self._positions[row, 0] = position

    def put_slot(self, row: int, slot: int) -> None:
        """Which slot the row is of."""
        self._slots[row] = slot

    def put_sampling(self, row: int, sampling: DeviceSampling) -> None:
        """How the device chooses the row's token."""
        self._sampling[row] = (sampling.top_k, sampling.top_p, sampling.temperature)

    def put_step(self, rows: Sequence[DecodeRow], *, sampled: bool) -> None:
        """Decode rows in the caller's order, for a graph of width 1."""
        count = len(rows)
        self._tokens[:count, 0] = [row.token for row in rows]
        self._positions[:count, 0] = [row.position for row in rows]
        self._slots[:count] = [row.slot for row in rows]
        if sampled:
            wishes = (row.sampling for row in rows)
            self._sampling[:count] = [(wish.top_k, wish.top_p, wish.temperature) for wish in wishes]

    def first(self, count: int) -> dict[str, torch.Tensor]:
        """The first ``count`` rows; valid until the next change."""
        return {name: tensor[:count] for name, tensor in self._tensors.items()}
