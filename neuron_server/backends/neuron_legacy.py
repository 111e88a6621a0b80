"""The backend for models that optimum-neuron 0.0.19 to 0.1 compiled, on transformers-neuronx or its fork.

Two kinds of models. With *continuous batching* (llama, mistral, qwen2, granite with more than one slot) a
prefill inserts: one run of a graph as wide as the sequence for each prompt. *Static* ones (gpt2, opt, bloom,
mixtral, and all with one slot) are rebuilt: all rows are fed again, left padded, and share one column from
then on; see ``shared_column.py``. Sampling is the engine's: what upstream calls its token selector knows one
seed for all rows, and raises for plain sampling (top_k 0, top_p 1).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from neuron_server.backend import BackendInfo, DecodeRow, Output, PrefillRow
from neuron_server.backends.compiled_facts import compiled_facts
from neuron_server.backends.device_work import DeviceWork
from neuron_server.backends.neuron_legacy_load import LegacyModel, check_files, open_model
from neuron_server.backends.shared_column import Layout, SharedColumn
from neuron_server.backends.slots import SlotTable
from neuron_server.config import GeneratorConfig
from neuron_server.shape import StaticShape

logger = logging.getLogger(__name__)

Logits = npt.NDArray[np.float32]


class NeuronLegacyBackend:
    """``Backend`` on a loaded ``NeuronModelForCausalLM`` of the transformers-neuronx generation.

    ``shape`` is that which it was compiled for.
    """

    def __init__(
        self,
        model: LegacyModel,
        shape: StaticShape,
        max_prompt_tokens: int,
        *,
        vocab_size: int,
        dtype: str = "float32",
        device: str = "neuron",
    ) -> None:
        self._model = model
        self._shared = None if model.continuous_batching else SharedColumn(shape.batch_size, shape.max_length)
        self._info = BackendInfo(
            shape=shape,
            max_prompt_tokens=max_prompt_tokens,
            vocab_size=vocab_size,
            prefill_mode="insert" if self._shared is None else "rebuild",
            dtype=dtype,
            device=device,
        )
        self._slots = SlotTable(self._info)
        self._device = DeviceWork("neuron_legacy")

    @classmethod
    def load(cls, config: GeneratorConfig) -> NeuronLegacyBackend:
        """Load the compiled model that ``config`` names; raises ``ModelError`` or ``ConfigError``.

        The model says whether it inserts or rebuilds, and its type; ``config`` cannot change either.
        """
        facts, static = compiled_facts(config, "legacy")
        check_files(config, static)
        backend = cls(
            open_model(config, static),
            StaticShape(config.batch_size, config.max_length),
            config.max_prompt_tokens,
            vocab_size=facts.vocab_size,
            dtype=static.dtype or config.dtype,
            device=f"neuron (transformers-neuronx, tp {static.cores or 1})",
        )
        logger.info(
            "%s loaded on %s NeuronCores: %s, %s, %s prefill",
            facts.model_type,
            static.cores,
            backend.info.dtype,
            backend.info.shape,
            backend.info.prefill_mode,
        )
        return backend

    @property
    def info(self) -> BackendInfo:
        """Constant after load."""
        return self._info

    def prefill(self, rows: Sequence[PrefillRow]) -> Output:
        """See ``Backend.prefill``.

        ``Output.positions``: T for each row where the model inserts, since its one context graph is that
        wide; B x L, the columns handed over, where it is rebuilt (a graph below may pad them further).
        """
        self._device.refuse_if_dead()
        self._slots.check_prefill(rows)
        if not rows:
            self._slots.filled(rows)
            return Output(self._no_logits())
        if self._shared is None:
            output = self._device.run(lambda: self._insert(rows))
        else:
            layout = self._shared.rebuild({row.slot: row.tokens for row in rows})
            logits = self._device.run(lambda: self._rebuild(layout))  # (B, V)
            output = Output(logits[[row.slot for row in rows]], positions=layout.input_ids.numel())
        self._slots.filled(rows)
        return output

    def decode(self, rows: Sequence[DecodeRow]) -> Output:
        """See ``Backend.decode``.

        Where the column that all rows share has met the end of the cache, the batch is rebuilt first, at the
        cost of a whole prefill, which ``Output.positions`` tells.
        """
        self._device.refuse_if_dead()
        self._slots.check_decode(rows)
        if not rows:
            return Output(self._no_logits())
        shared = self._shared
        if shared is None:
            output = self._device.run(lambda: self._step_each(rows))
        else:
            output = self._device.run(lambda: self._step_together(shared, rows))
        self._slots.stepped(rows)
        return output

    def release(self, slots: Sequence[int]) -> None:
        """See ``Backend.release``."""
        self._device.refuse_if_dead()
        self._slots.check_release(slots)
        self._slots.freed(slots)
        if self._shared is not None:
            self._shared.free(slots)

    def close(self) -> None:
        """Refuse later calls. The NeuronCores are given back when the process ends, not before."""
        self._device.close()

    # -- device work -----------------------------------------------------------------------------------------

    def _insert(self, rows: Sequence[PrefillRow]) -> Output:
        """All prompts in one call, which runs one after the other; upstream's helper moves the padding."""
        longest = max(len(row.tokens) for row in rows)
        input_ids = torch.zeros(len(rows), longest, dtype=torch.int64)  # (n, L)
        attention_mask = torch.zeros_like(input_ids)  # (n, L)
        for i, row in enumerate(rows):
            input_ids[i, -len(row.tokens) :] = torch.tensor(row.tokens)
            attention_mask[i, -len(row.tokens) :] = 1
        slots = torch.tensor([row.slot for row in rows])  # (n,)
        inputs = self._model.prepare_inputs_for_prefill(input_ids, attention_mask, seq_ids=slots)
        return Output(self._forward(inputs, len(rows)), positions=self._info.shape.max_length * len(rows))

    def _step_each(self, rows: Sequence[DecodeRow]) -> Output:
        """Each row at its own position; the slots that are not named run token 0 at position 0."""
        inputs = {
            "input_ids": torch.tensor([[row.token] for row in rows]),  # (n, 1)
            "cache_ids": torch.tensor([[row.position] for row in rows]),  # (n, 1)
            "start_ids": torch.tensor([row.slot for row in rows]),  # (n,)
        }
        return Output(self._forward(inputs, len(rows)), positions=self._info.shape.batch_size)

    def _rebuild(self, layout: Layout) -> Logits:
        inputs = self._model.prepare_inputs_for_prefill(layout.input_ids, layout.attention_mask)
        return self._forward(inputs, self._info.shape.batch_size)  # (B, V)

    def _step_together(self, shared: SharedColumn, rows: Sequence[DecodeRow]) -> Output:
        positions = self._info.shape.batch_size
        if shared.is_full:
            layout = shared.compact()
            self._rebuild(layout)
            positions += layout.input_ids.numel()
        step = shared.step({row.slot: row.token for row in rows})
        inputs = {"input_ids": step.input_ids, "cache_ids": step.cache_ids, "start_ids": step.start_ids}
        logits = self._forward(inputs, self._info.shape.batch_size)  # (B, V)
        return Output(logits[[row.slot for row in rows]], positions=positions)

    def _forward(self, inputs: Mapping[str, torch.Tensor | None], rows: int) -> Logits:
        """One call of the model: the logits after the last token of each of ``rows`` rows."""
        with torch.no_grad():
            logits = self._model(**inputs, return_dict=True)[0]  # (rows, 1, V)
        expected = (rows, 1, self._info.vocab_size)
        if tuple(logits.shape) != expected:
            raise RuntimeError(f"the model returned logits {tuple(logits.shape)}, not {expected}")
        return np.ascontiguousarray(logits[:, 0, :].float().numpy())  # (rows, V)

    def _no_logits(self) -> Logits:
        return np.empty((0, self._info.vocab_size), np.float32)
