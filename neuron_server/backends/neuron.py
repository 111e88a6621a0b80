"""The backend of models that optimum-neuron 0.3 and 0.4 compiled (``neuron_config.json``), on Inferentia2.

Thin: what a device must not be asked is refused by ``slots.py``, how the graphs are called is in
``neuron_graphs.py``, what stands in the way of loading in ``neuron_load.py``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from neuron_server.backend import BackendInfo, DecodeRow, Output, PrefillRow
from neuron_server.backends.compiled_facts import compiled_facts
from neuron_server.backends.device_work import DeviceWork
from neuron_server.backends.neuron_graphs import CompiledModel, Computed, InsertingGraphs, RebuildingGraphs
from neuron_server.backends.neuron_load import backend_info, load_model
from neuron_server.backends.slots import SlotTable
from neuron_server.config import GeneratorConfig

logger = logging.getLogger(__name__)


class NeuronBackend:
    """``Backend`` on a loaded ``NeuronModelForCausalLM``.

    ``info`` is what ``backend_info`` reads from the model's files; ``width`` its ``max_context_length``.
    ``info.prefill_mode`` says how it was compiled: ``rebuild`` is several slots without continuous batching.
    """

    def __init__(self, model: Any, info: BackendInfo, width: int) -> None:  # Any: optimum-neuron is untyped
        compiled = CompiledModel(model, info, width)
        graphs = InsertingGraphs if info.prefill_mode == "insert" else RebuildingGraphs
        self._info = info
        self._nothing = compiled.nothing()
        self._graphs = graphs(compiled)
        self._slots = SlotTable(info)
        self._device = DeviceWork("neuron")

    @classmethod
    def load(cls, config: GeneratorConfig) -> NeuronBackend:
        """Load the compiled model that ``config`` names; a process can do so once.

        Raises ``ConfigError`` where the model was compiled for another shape, and ``ModelError``, whose rule
        says what is in the way: ``not_a_neuron_model``, ``backend_unavailable`` (no optimum-neuron here),
        ``neuron_version``, ``neuron_target``, ``neuron_cores``, ``neuron_driver``, ``unsupported_model``.
        """
        facts, static = compiled_facts(config, "nxd")
        info = backend_info(facts, static, config.max_prompt_tokens)
        backend = cls(load_model(config.model_path, static), info, static.max_context_length)
        logger.info(
            "%s loaded on %s: %s, %s slots, prefill graph %d wide, %s prefill, %s come back",
            facts.model_type,
            info.device,
            info.dtype,
            info.shape,
            static.max_context_length,
            info.prefill_mode,
            info.output,
        )
        return backend

    @property
    def info(self) -> BackendInfo:
        """Constant after load."""
        return self._info

    def prefill(self, rows: Sequence[PrefillRow]) -> Output:
        """See ``Backend.prefill``. Each inserted row costs C positions, however short its prompt."""
        self._device.refuse_if_dead()
        self._slots.check_prefill(rows)
        computed = self._computed(rows, lambda: self._graphs.prefill(rows))
        self._slots.filled(rows)
        return self._output(computed)

    def decode(self, rows: Sequence[DecodeRow]) -> Output:
        """See ``Backend.decode``. The graph computes all B rows, however few are live."""
        self._device.refuse_if_dead()
        self._slots.check_decode(rows)
        computed = self._computed(rows, lambda: self._graphs.decode(rows))
        self._slots.stepped(rows)
        return self._output(computed)

    def release(self, slots: Sequence[int]) -> None:
        """See ``Backend.release``. What the slots hold is overwritten by the next prefill, or masked."""
        self._device.refuse_if_dead()
        self._slots.check_release(slots)
        self._slots.freed(slots)

    def close(self) -> None:
        """Refuse later calls. The NeuronCores are given back when the process ends, not before."""
        self._device.close()

    def _computed(self, rows: Sequence[object], work: Callable[[], Computed]) -> Computed:
        return self._device.run(work) if rows else self._nothing

    def _output(self, computed: Computed) -> Output:
        if not self._info.samples:
            return Output(computed.result, positions=computed.positions)
        none = np.empty((len(computed.result), 0), np.float32)  # (n, 0)
        return Output(none, positions=computed.positions, tokens=computed.result)
