"""optimum-neuron 0.0.28 itself, made to run here: its gaps filled, its graphs replaced by ``TinyGraphs``.

``NeuronModelForCausalLM.from_pretrained`` then runs as it is: reading the config, the compiler check, the
export arguments of the architecture, the lazy reading of the checkpoint, and for llama the whole host half of
a forward (padding, scattering of rows into the static batch, row by row context encoding, restoring the
order). Replaced are the count of cores, what happens when the graphs are put on them, and their runs. gpt2
lives in transformers-neuronx, which is absent: its class here is a stand-in, host half included.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from hosts.import_gaps import GapFinder, install
from hosts.legacy.graphs import TinyGraphs
from transformers import AutoModelForCausalLM

#: What optimum-neuron 0.0.28 imports of AWS's package index.
ROOTS = ("torch_xla", "torch_neuronx", "transformers_neuronx", "neuronxcc", "libneuronxla")

#: The compiler that the SDK of 0.0.28 ships; models say which one compiled them.
COMPILER = "2.16.372.0+4a9b2326"
#: What this machine pretends to have.
CORES = 2


class _Static:
    """The parts of a model class of transformers-neuronx that optimum-neuron calls."""

    def __init__(self, path: str, *, batch_size: int, n_positions: int, neuron_config: Any) -> None:
        self.neuron_config = neuron_config
        self._path, self._shape = path, (batch_size, n_positions)
        self._compiled: Path | None = None

    @classmethod
    def from_pretrained(cls, path: str, *, batch_size: int, n_positions: int, **kwargs: Any) -> _Static:
        assert set(kwargs) == {"tp_degree", "amp", "neuron_config"}
        return cls(
            path, batch_size=batch_size, n_positions=n_positions, neuron_config=kwargs["neuron_config"]
        )

    def load(self, directory: str) -> None:
        self._compiled = Path(directory)

    def to_neuron(self) -> None:
        assert self._compiled is not None
        assert self._compiled.is_dir()
        self.graphs = TinyGraphs(_weights(self._path), *self._shape, continuous_batching=False)
        self.graphs.named = tuple(range(self._shape[0]))


class Gpt2ForSampling(_Static):
    """gpt2 has no context graph: a prefill runs the decode graph column by column, for the whole batch."""

    def forward(
        self, input_ids: torch.Tensor, cache_ids: torch.Tensor | None, start_ids: torch.Tensor
    ) -> torch.Tensor:
        if cache_ids is None:
            cache_ids = torch.arange(input_ids.shape[1], dtype=torch.int32)
        for column, position in enumerate(cache_ids):
            token = input_ids[:, column : column + 1]  # (B, 1)
            logits = self.graphs.decode_column(token, position[None], start_ids)
        return logits  # (B, V)


class _KeepsArguments(SimpleNamespace):
    """A config object of transformers-neuronx: its keywords become its attributes."""

    continuous_batching: Any = None


@cache
def load() -> GapFinder:
    """Import the real package, once; its gaps stay filled while the process lives."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    finder = install(
        ROOTS,
        {
            "neuronxcc": {"__version__": COMPILER},
            "torch_xla": {"__version__": "2.1.6"},
            "transformers_neuronx": {
                "NeuronConfig": _KeepsArguments,
                "ContinuousBatchingConfig": _KeepsArguments,
            },
            "transformers_neuronx.gpt2.model": {"GPT2ForSampling": Gpt2ForSampling},
        },
    )
    from optimum.neuron import modeling_decoder
    from optimum.neuron.backends.hlo.decoder import NeuronHloDecoderModel

    modeling_decoder.get_available_cores = lambda: CORES
    NeuronHloDecoderModel.to_neuron = _hlo_to_neuron
    return finder


def _hlo_to_neuron(self: Any) -> None:
    """Instead of compiling and loading: the tiny graphs, below the real ``forward`` of the model."""
    config = self.neuron_config
    embedding = self.cpu_model.model.embed_tokens
    embedding.materialize()
    graphs = TinyGraphs(
        _weights(os.path.dirname(embedding.weight._file_path)),
        config.batch_size,
        config.n_positions,
        continuous_batching=config.continuous_batching,
    )
    self.graphs = graphs
    # Upstream blanks what it has moved to the device; here it was never read, so it goes altogether.
    self.cpu_model.lm_head = self.cpu_model.model.layers = self.cpu_model.model.norm = None
    insert = config.continuous_batching
    self.decoder_lm_head_for_context.forward = graphs.insert if insert else graphs.context
    self.decoder_lm_head.forward = graphs.decode_each if insert else graphs.decode_one
    forward = self.forward

    def named_forward(
        input_ids: torch.Tensor, cache_ids: torch.Tensor | None, start_ids: torch.Tensor
    ) -> torch.Tensor:
        graphs.named = tuple(start_ids.tolist()) if insert else tuple(range(config.batch_size))
        return forward(input_ids, cache_ids, start_ids)

    self.forward = named_forward


def _weights(path: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, torch_dtype="float32", attn_implementation="eager")
