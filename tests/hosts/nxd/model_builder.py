"""The part of a compiler: what takes graphs and example inputs, and gives back one callable.

``ModelBuilder`` has the interface of neuronx-distributed's as optimum-neuron uses it, and "compiles" by
keeping the modules: what runs is upstream's graph source, on CPU, in the order and with the aliases it asks
for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from contract.subject import GraphCall
from safetensors.torch import save_file
from torch import nn

_INPUTS = ("input_ids", "position_ids", "seq_ids", "sampling_params")
#: optimum-neuron 0.3 compiles the attention mask as a fifth.
_INPUTS_WITH_MASK = ("input_ids", "attention_mask", "position_ids", "seq_ids", "sampling_params")


@dataclass
class Graph:
    """One graph: its name, the module, the shapes and types it was compiled for, and its aliases."""

    name: str
    module: nn.Module
    shapes: tuple[tuple[tuple[int, ...], torch.dtype], ...]
    #: KV cache -> which output is written back to it.
    aliases: dict[nn.Parameter, int]


class CompiledModel(nn.Module):
    """What ``torch.jit.load`` would give: called with tensors, it runs the graph of exactly their shapes.

    ``calls`` is the log; ``nxd_model.initialize`` takes the weights of each rank, as on a device.
    """

    def __init__(self, graphs: list[Graph]) -> None:
        super().__init__()
        self.graphs = graphs
        self.calls: list[GraphCall] = []

    @property
    def nxd_model(self) -> CompiledModel:
        return self

    def initialize(self, weights: list[dict[str, torch.Tensor]], start_rank: torch.Tensor) -> None:
        """Give the weights of the one rank to every graph, and nothing may be missing but the KV cache."""
        for graph in self.graphs:
            missing, unexpected = graph.module.load_state_dict(weights[0], strict=False)
            wrong = [name for name in missing if ".past_key_values." not in name] + unexpected
            assert not wrong, f"weights of {graph.name} that do not fit: {wrong}"

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        given = tuple((tuple(tensor.shape), tensor.dtype) for tensor in inputs)
        graph = next((graph for graph in self.graphs if graph.shapes == given), None)
        if graph is None:
            raise RuntimeError(
                f"no graph was compiled for {given}; there are {[g.shapes for g in self.graphs]}"
            )
        names = _INPUTS if len(inputs) == len(_INPUTS) else _INPUTS_WITH_MASK
        shown = {
            n: (shape, str(t).removeprefix("torch.")) for n, (shape, t) in zip(names, given, strict=True)
        }
        slots = tuple(inputs[names.index("seq_ids")].tolist())
        self.calls.append(GraphCall("prefill" if "context" in graph.name else "decode", shown, slots))
        with torch.no_grad():
            outputs = graph.module(*(tensor.clone() for tensor in inputs))
            for cells, index in graph.aliases.items():
                cells.copy_(outputs[index])
        return outputs[0]


class ModelBuilder:
    """Collects graphs, then traces them or shards their weights, for one core."""

    def __init__(self, *, checkpoint_loader: Callable[[], dict[str, Any]] | None = None, **_: Any) -> None:
        self._checkpoint_loader = checkpoint_loader
        self._added: list[tuple[str, Any, list[tuple[torch.Tensor, ...]]]] = []

    def add(self, key: str, model_instance: Any, example_inputs: list[Any], **_: Any) -> ModelBuilder:
        self._added.append((key, model_instance, example_inputs))
        return self

    def trace(self, **_: Any) -> CompiledModel:
        """All graphs on one KV cache, which starts as garbage: nobody clears a device's memory."""
        graphs: list[Graph] = []
        cache: nn.ParameterList | None = None
        for key, instance, examples in self._added:
            instance.load_module()
            module = instance.module
            cache = module.kv_mgr.past_key_values if cache is None else cache
            module.kv_mgr.past_key_values = cache
            for rank, inputs in enumerate(examples):
                module, aliases = instance.get(rank)
                shapes = tuple((tuple(tensor.shape), tensor.dtype) for tensor in inputs)
                graphs.append(Graph(key, module, shapes, aliases))
        noise = torch.Generator().manual_seed(0)
        for cells in cache or ():
            cells.data = (
                torch.randn(cells.shape, generator=noise, dtype=torch.float32).mul_(100).to(cells.dtype)
            )
        return CompiledModel(graphs)

    def shard_checkpoint(self, serialize_path: str | None = None) -> list[dict[str, torch.Tensor]]:
        """The weights of the one rank, after the hooks that modules have for it."""
        assert self._checkpoint_loader is not None
        weights = dict(self._checkpoint_loader())
        instance = self._added[0][1]
        instance.load_module()
        for name, module in instance.module.named_modules():
            if hasattr(module, "preshard_hook"):
                module.preshard_hook(weights, f"{name}.weight")
        if serialize_path is not None:
            Path(serialize_path).mkdir(parents=True, exist_ok=True)
            save_file(weights, str(Path(serialize_path) / "tp0_sharded_checkpoint.safetensors"))
        return [weights]
