"""``NeuronModelForCausalLM`` of optimum-neuron 0.0.28 as it is documented, for runs without that package.

What it does to its inputs is written down here a second time, from the description of its contract; the tests
of ``tests/hosts/legacy`` run the real one over the same graphs. Every call is kept in ``seen``.
"""

from __future__ import annotations

from typing import Any

import torch
from hosts.legacy.graphs import TinyGraphs


class LegacyModelDouble:
    """Continuous batching on llama, or a static batch on gpt2, whose prefill goes column by column."""

    def __init__(self, lm: Any, batch_size: int, width: int) -> None:
        self.continuous_batching = lm.config.model_type == "llama"
        self.graphs = TinyGraphs(lm, batch_size, width, continuous_batching=self.continuous_batching)
        self.seen: list[dict[str, torch.Tensor | None]] = []

    def prepare_inputs_for_prefill(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, seq_ids: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor | None]:
        if not self.continuous_batching:
            return {"input_ids": input_ids, "cache_ids": None, "start_ids": attention_mask.argmax(1)}
        columns = torch.arange(input_ids.shape[1])
        lengths = attention_mask.sum(1)
        real = columns < lengths[:, None]  # (n, L)
        shifted = (columns + input_ids.shape[1] - lengths[:, None]).clamp(max=input_ids.shape[1] - 1)
        return {
            "input_ids": input_ids.gather(1, shifted) * real,
            "cache_ids": columns * real,
            "start_ids": seq_ids,
        }

    def __call__(self, *, return_dict: bool, **inputs: torch.Tensor | None) -> tuple[torch.Tensor]:
        assert return_dict
        assert not torch.is_grad_enabled()
        self.seen.append(inputs)
        ids, columns, starts = inputs["input_ids"], inputs["cache_ids"], inputs["start_ids"]
        assert ids is not None
        assert starts is not None
        assert (ids.dtype, starts.dtype) == (torch.int64, torch.int64)
        if not self.continuous_batching:
            return (self._static(ids, columns, starts)[:, None],)
        assert columns is not None
        assert columns.dtype == torch.int64
        run = self._step if ids.shape[1] == 1 else self._insert
        return (run(ids, columns, starts)[:, None],)

    def _static(self, ids: torch.Tensor, columns: torch.Tensor | None, starts: torch.Tensor) -> torch.Tensor:
        if columns is None:
            columns = torch.arange(ids.shape[1], dtype=torch.int32)
        assert columns.dtype == torch.int32
        for token, column in zip(ids.T, columns, strict=True):
            logits = self.graphs.decode_column(token[:, None], column[None], starts)
        return logits  # (B, V)

    def _insert(self, ids: torch.Tensor, columns: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        width = self.graphs.width
        assert ids.shape[1] <= width
        padded = torch.nn.functional.pad(ids, (0, width - ids.shape[1]))
        every = torch.arange(width)[None]
        last = columns.max(1).values
        rows = [
            self.graphs.insert(self._embed(padded[i : i + 1]), every, slots[i : i + 1], last[i : i + 1])
            for i in range(len(ids))
        ]
        return torch.cat(rows, dim=-1)[:, 0].T  # (n, V)

    def _step(self, ids: torch.Tensor, columns: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        size = self.graphs.batch_size
        tokens = torch.zeros(size, 1, dtype=torch.int64).index_copy(0, slots, ids)
        positions = torch.zeros(size, 1, dtype=torch.int64).index_copy(0, slots, columns)
        self.graphs.named = tuple(slots.tolist())
        last = torch.zeros(size, dtype=torch.int32)
        logits = self.graphs.decode_each(self._embed(tokens), positions, torch.arange(size), last)
        return logits[:, 0].T[slots]  # (n, V)

    def _embed(self, ids: torch.Tensor) -> torch.Tensor:
        return self.graphs.model.get_input_embeddings()(ids)
