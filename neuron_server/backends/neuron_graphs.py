"""The two ways in which models of optimum-neuron 0.3 and 0.4 are called, by how they were compiled.

With continuous batching the prefill graph has one row, and writes one slot. Without it the graph has B rows,
row i is slot i whatever the call says, and every slot is rewritten; so is the decode graph's row i slot i.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from neuron_server.backend import BackendInfo, DecodeRow, PrefillRow
from neuron_server.backends.neuron_inputs import GraphInputs

#: float32 (n, V), or int64 (n,) where the device chooses the tokens.
Result = npt.NDArray[Any]  # Any: either of the two


@dataclass(frozen=True, slots=True)
class Computed:
    """The result of each row in the caller's order, and how many token positions the graphs computed."""

    result: Result
    positions: int


class CompiledModel:
    """A loaded ``XxxNxDModelForCausalLM``; ``width`` is the prefill graph's, C."""

    def __init__(self, model: Any, info: BackendInfo, width: int) -> None:  # Any: optimum-neuron is untyped
        self._model = model
        self.info = info
        self.width = width

    def __call__(self, inputs: dict[str, torch.Tensor]) -> Result:
        """One ``forward``. Raises ``RuntimeError`` for a result that is none.

        0.4.4 and later return the tensor itself; before, it is element 0 of an object, logits or tokens.
        """
        with torch.no_grad():
            output = self._model.forward(**inputs)
        tensor = output if isinstance(output, torch.Tensor) else output[0]
        rows = inputs["input_ids"].shape[0]
        return self._tokens(tensor, rows) if self.info.samples else self._logits(tensor, rows)

    def _tokens(self, tensor: torch.Tensor, rows: int) -> Result:
        # Whether they are tokens of the vocabulary is judged for each row, in engine/choosing.py.
        if tensor.shape != (rows,):
            raise RuntimeError(f"the device returned the shape {tuple(tensor.shape)}, not {rows} tokens")
        return tensor.cpu().numpy().astype(np.int64)

    def _logits(self, tensor: torch.Tensor, rows: int) -> Result:
        if tensor.ndim != 3 or tensor.shape[:2] != (rows, 1) or tensor.shape[2] < self.info.vocab_size:
            want = (rows, 1, self.info.vocab_size)
            raise RuntimeError(f"the device returned the shape {tuple(tensor.shape)}, not logits {want}")
        # Beyond V may be padding that makes the vocabulary divisible by the cores.
        logits = tensor[:, 0, : self.info.vocab_size]  # (rows, V)
        return logits.to("cpu", torch.float32).contiguous().numpy()

    def nothing(self) -> Computed:
        """The result of no rows."""
        empty = np.empty(0, np.int64) if self.info.samples else self._no_logits()
        return Computed(empty, 0)

    def _no_logits(self) -> Result:
        return np.empty((0, self.info.vocab_size), np.float32)


class InsertingGraphs:
    """Continuous batching, or a single slot: one prefill call per prompt, one decode call for all live slots.

    Free slots are left to optimum-neuron, which fills the batch up with copies of the first row; those write
    into the free slots only because every live one is there.
    """

    def __init__(self, model: CompiledModel) -> None:
        self._model = model
        self._prompt = GraphInputs(1, model.width)
        self._step = GraphInputs(model.info.shape.batch_size, 1)

    def prefill(self, rows: Sequence[PrefillRow]) -> Computed:
        """C positions for each row."""
        results = [self._prefill_row(row) for row in rows]
        joined = results[0] if len(results) == 1 else np.concatenate(results)
        return Computed(joined, self._model.width * len(rows))

    def _prefill_row(self, row: PrefillRow) -> Result:
        self._prompt.put_text(0, row.tokens)
        self._prompt.put_slot(0, row.slot)
        if self._model.info.samples:
            self._prompt.put_sampling(0, row.sampling)
        return self._model(self._prompt.first(1))

    def decode(self, rows: Sequence[DecodeRow]) -> Computed:
        """B positions."""
        self._step.put_step(rows, sampled=self._model.info.samples)
        result = self._model(self._step.first(len(rows)))
        return Computed(result, self._model.info.shape.batch_size)


class RebuildingGraphs:
    """No continuous batching: every call has B rows in the order of the slots, free ones as token 0 at 0.

    A history longer than the prefill graph enters with its first C tokens; decode steps feed the rest, during
    which the other rows repeat their last token where it stands already.
    """

    def __init__(self, model: CompiledModel) -> None:
        self._model = model
        self._size = model.info.shape.batch_size
        self._texts = GraphInputs(self._size, model.width)
        self._step = GraphInputs(self._size, 1)

    def prefill(self, rows: Sequence[PrefillRow]) -> Computed:
        """B x C positions, and B for each token of the longest history beyond C."""
        width, sampled = self._model.width, self._model.info.samples
        self._texts.clear()
        self._step.clear()
        for row in rows:
            self._texts.put_text(row.slot, row.tokens[:width])
            if sampled:
                self._texts.put_sampling(row.slot, row.sampling)
                self._step.put_sampling(row.slot, row.sampling)
        result = self._model(self._texts.first(self._size))[[row.slot for row in rows]]
        longest = max(len(row.tokens) for row in rows)
        for position in range(width, longest):
            for row in rows:
                last = min(position, len(row.tokens) - 1)
                self._step.put_token(row.slot, row.tokens[last], last)
            stepped = self._model(self._step.first(self._size))
            for index, row in enumerate(rows):
                if len(row.tokens) == position + 1:
                    result[index] = stepped[row.slot]
        return Computed(result, self._size * max(width, longest))

    def decode(self, rows: Sequence[DecodeRow]) -> Computed:
        """B positions."""
        self._step.clear()
        for row in rows:
            self._step.put_token(row.slot, row.token, row.position)
            if self._model.info.samples:
                self._step.put_sampling(row.slot, row.sampling)
        result = self._model(self._step.first(self._size))[[row.slot for row in rows]]
        return Computed(result, self._size)
