"""What the compiled graphs of the legacy generation compute, on a tiny model of transformers.

They stand in for the NEFF files that a NeuronCore runs, below the host code: fixed input shapes, a KV cache
that lives here between calls, and each write exactly where the device's own is. Derived from the graph
sources of optimum-neuron 0.0.28 (its fork of transformers-neuronx), which cannot run without the compiler's
packages: this is what we believe of them, not a proof.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from contract.subject import GraphCall
from transformers import DynamicCache

#: What the device's input buffers hold, whatever the host's type was.
_INTEGERS, _FLOATS = "int32", "float32"


class TinyGraphs:
    """A context graph and a decode graph that share one KV cache of B x S.

    ``model``: a causal LM of transformers in float32 with eager attention. ``calls`` logs every run.
    """

    def __init__(self, model: Any, batch_size: int, width: int, *, continuous_batching: bool) -> None:
        config = model.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        shape = (batch_size, heads, width, config.hidden_size // config.num_attention_heads)
        self.model = model.eval()
        self.batch_size = batch_size
        self.width = width
        self.continuous_batching = continuous_batching
        noise = torch.Generator().manual_seed(0)
        # A device's memory is not cleared: whoever reads a column that nobody wrote gets garbage.
        self._cells = [
            [torch.randn(shape, generator=noise).mul_(100) for _ in range(2)]
            for _ in range(config.num_hidden_layers)
        ]
        self.calls: list[GraphCall] = []
        #: The slots that the host was asked for, which the decode graph's own inputs no longer show.
        self.named: tuple[int, ...] = ()

    def drain(self) -> list[GraphCall]:
        """The calls since the last time."""
        calls, self.calls = self.calls, []
        return calls

    # -- continuous batching: one prompt inserted, all slots decoded -----------------------------------------

    def insert(
        self, hidden: torch.Tensor, cache_ids: Any, start_ids: Any, last_token_id: Any
    ) -> torch.Tensor:
        """One prompt, as wide as the cache, into the slot ``start_ids``; logits (V, 1, 1)."""
        self._check(
            "prefill", hidden, (1, self.width), cache_ids, (1, self.width), start_ids, last_token_id, 1
        )
        return self._whole_row(int(start_ids), hidden, cache_ids[0], last_token_id)

    def decode_each(
        self, hidden: torch.Tensor, cache_ids: Any, start_ids: Any, last_token_id: Any
    ) -> torch.Tensor:
        """All B slots, each at its own position, which is also its column; logits (V, 1, B)."""
        size = self.batch_size
        self._check("decode", hidden, (size, 1), cache_ids, (size, 1), start_ids, last_token_id, size)
        columns = cache_ids[:, 0].to(torch.int64)  # (B,)
        prior = torch.arange(self.width) < columns[:, None]  # (B, S)
        logits = self._step({"inputs_embeds": hidden}, columns, columns, prior, prior.new_ones(size))
        return logits.T[:, None, :]

    # -- static batch: one column for all rows ---------------------------------------------------------------

    def context(
        self, hidden: torch.Tensor, cache_ids: Any, start_ids: Any, last_token_id: Any
    ) -> torch.Tensor:
        """The row of a batch of one slot, as wide as the cache; logits (V, 1, 1).

        ``start_ids`` is ignored, as by the source: nothing pads a single row on the left.
        """
        self._check("prefill", hidden, (1, self.width), cache_ids, (self.width,), start_ids, last_token_id, 1)
        return self._whole_row(0, hidden, cache_ids, last_token_id)

    def decode_one(
        self, hidden: torch.Tensor, cache_ids: Any, start_ids: Any, last_token_id: Any
    ) -> torch.Tensor:
        """The decode graph of a batch whose host embeds the tokens (rotary positions are the columns)."""
        size = self.batch_size
        self._check("decode", hidden, (size, 1), cache_ids, (1,), start_ids, last_token_id, 1)
        columns = cache_ids.to(torch.int64).expand(size)
        prior, active = self._static_masks(columns, start_ids)
        return self._step({"inputs_embeds": hidden}, columns, columns, prior, active).T[:, None, :]

    def decode_column(
        self, input_ids: torch.Tensor, cache_ids: torch.Tensor, start_ids: torch.Tensor
    ) -> torch.Tensor:
        """All B rows in one column; a row's learned position counts from its own start; logits (B, V)."""
        size = self.batch_size
        self._expect("input_ids", input_ids, (size, 1))
        self._expect("cache_ids", cache_ids, (1,))
        self._expect("start_ids", start_ids, (size,))
        self._log("decode", {"input_ids": input_ids, "cache_ids": cache_ids, "start_ids": start_ids})
        columns = cache_ids.to(torch.int64).expand(size)
        prior, active = self._static_masks(columns, start_ids)
        positions = (columns - start_ids).clamp(min=0)
        return self._step({"input_ids": input_ids}, positions, columns, prior, active)

    def _static_masks(
        self, columns: torch.Tensor, start_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        every = torch.arange(self.width)  # (S,)
        prior = (every < columns[:, None]) & (every >= start_ids[:, None])  # (B, S)
        return prior, columns >= start_ids

    # -- inside ----------------------------------------------------------------------------------------------

    def _whole_row(self, slot: int, hidden: torch.Tensor, columns: Any, last_token_id: Any) -> torch.Tensor:
        """A row of S tokens, position for position, and its cells into the columns of ``slot``; (V, 1, 1)."""
        columns = columns.to(torch.int64)  # (S,)
        out = self.model(inputs_embeds=hidden, position_ids=columns[None], use_cache=True)
        for layer, cells in zip(_pairs(out.past_key_values), self._cells, strict=True):
            for new, kept in zip(layer, cells, strict=True):
                kept[slot, :, columns] = new[0]
        return out.logits[0, int(last_token_id)][:, None, None]

    def _step(
        self,
        tokens: dict[str, torch.Tensor],
        positions: torch.Tensor,
        columns: torch.Tensor,
        prior: torch.Tensor,
        active: torch.Tensor,
    ) -> torch.Tensor:
        """Attend to the cache and to the new token beside it, then write the new token's cells; (B, V)."""
        if int(columns.min()) < 0 or int(columns.max()) >= self.width:
            raise IndexError(f"columns {columns.tolist()} are outside a cache of {self.width}")
        legacy = tuple((keys, values) for keys, values in self._cells)
        cached = getattr(self.model, "_supports_cache_class", True)
        out = self.model(
            **tokens,
            past_key_values=DynamicCache.from_legacy_cache(legacy) if cached else legacy,
            attention_mask=torch.cat([prior, active[:, None]], 1).to(torch.int64),  # (B, S + 1)
            position_ids=positions[:, None],
            use_cache=True,
        )
        rows = torch.arange(self.batch_size)
        for layer, cells in zip(_pairs(out.past_key_values), self._cells, strict=True):
            for new, kept in zip(layer, cells, strict=True):
                kept[rows, :, columns] = new[:, :, -1]
        return out.logits[:, -1]

    def _check(
        self,
        graph: str,
        hidden: torch.Tensor,
        rows: tuple[int, int],
        cache_ids: torch.Tensor,
        cache_shape: tuple[int, ...],
        start_ids: torch.Tensor,
        last_token_id: torch.Tensor,
        last_size: int,
    ) -> None:
        self._expect("hidden", hidden, (*rows, self.model.config.hidden_size))
        self._expect("cache_ids", cache_ids, cache_shape)
        self._expect("start_ids", start_ids, rows[:1])
        self._expect("last_token_id", last_token_id, (last_size,))
        inputs = {"hidden": hidden, "cache_ids": cache_ids, "start_ids": start_ids}
        self._log(graph, inputs | {"last_token_id": last_token_id})

    def _expect(self, name: str, tensor: torch.Tensor, shape: Sequence[int]) -> None:
        """A compiled graph has one shape for each input; the runtime refuses any other."""
        if tuple(tensor.shape) != tuple(shape):
            raise ValueError(f"the graph was compiled for {name} {tuple(shape)}, not {tuple(tensor.shape)}")

    def _log(self, graph: str, inputs: dict[str, torch.Tensor]) -> None:
        kinds = {
            name: (tuple(tensor.shape), _FLOATS if tensor.is_floating_point() else _INTEGERS)
            for name, tensor in inputs.items()
        }
        prompt = graph == "prefill" and self.continuous_batching
        slots = tuple(inputs["start_ids"].tolist()) if prompt else self.named
        self.calls.append(GraphCall(graph, kinds, slots))


def _pairs(cache: Any) -> Sequence[Sequence[torch.Tensor]]:
    """(keys, values) of each layer, however this release of transformers hands them back."""
    return cache.to_legacy_cache() if hasattr(cache, "to_legacy_cache") else cache
