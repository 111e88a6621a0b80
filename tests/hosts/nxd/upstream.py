"""optimum-neuron's own code, imported over the stand-ins once per process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from hosts.import_gaps import GapFinder, install
from hosts.nxd import stand_ins
from hosts.nxd.model_builder import CompiledModel
from transformers import AutoConfig

#: What optimum-neuron 0.3 and 0.4 import of AWS's package index.
ROOTS = ("torch_xla", "torch_neuronx", "neuronx_distributed", "neuronxcc", "libneuronxla")

#: The releases that the stand-ins are made for.
VERSIONS = ("0.4.5", "0.3.0")


def installed() -> str:
    """The version of optimum-neuron in this environment."""
    return metadata.version("optimum-neuron")


@cache
def stand_in() -> GapFinder:
    """Install the stand-ins and import what the tiny model needs of upstream."""
    if installed() not in VERSIONS:
        raise RuntimeError(f"the stand-ins are made for {' and '.join(VERSIONS)}, not for {installed()}")
    finder = install(ROOTS, stand_ins.DEFINED)
    stand_ins.fill_in_primitives()
    import_module("optimum.neuron.models.inference.auto_models")
    return finder


def model_class(model_type: str = "llama") -> Any:
    """What ``NeuronModelForCausalLM.from_pretrained`` makes for this type."""
    stand_in()
    auto_model = import_module("optimum.neuron.models.auto_model")
    return auto_model.get_neuron_model_class(model_type, task="text-generation", mode="inference")


def config_class() -> Any:
    """``NxDNeuronConfig``."""
    stand_in()
    return import_module("optimum.neuron.models.inference.backend.config").NxDNeuronConfig


def compile_graphs(kind: Any, config: Any, neuron_config: Any) -> CompiledModel:
    """The graphs as upstream builds them for compilation."""
    pretrained = import_module("optimum.neuron.models.inference.backend.pretrained_model")
    if installed() == "0.3.0":
        made = kind.create_model_wrappers(kind._model_cls, config, neuron_config)
        graphs = [wrapper for wrapper in made if wrapper is not None]
    else:
        graphs = kind.create_graph_builders(config, neuron_config)
    return pretrained.get_builder(neuron_config, graphs).trace(initialize_model_weights=False)


def shard_weights(source: str, destination: str, config: Any, neuron_config: Any) -> None:
    """Write the weights of each core as an export of a local model does, below ``destination``."""
    model = new_model(model_class(config.model_type), config, neuron_config)
    model.shard_checkpoint(src_path=source, dest_path=destination)


def new_model(kind: Any, config: Any, neuron_config: Any) -> Any:
    """A model around graphs without weights."""
    traced = compile_graphs(kind, config, neuron_config)
    if installed() == "0.3.0":
        wrappers = kind.create_model_wrappers(kind._model_cls, config, neuron_config)
        return kind(config, neuron_config, traced, *wrappers)
    builders = kind.create_graph_builders(config, neuron_config)
    return kind(config=config, neuron_config=neuron_config, traced_model=traced, graph_builders=builders)


def new_sampler(neuron_config: Any) -> Any:
    """What chooses the tokens at the end of a graph."""
    stand_in()
    return import_module("optimum.neuron.models.inference.backend.modules.generation.sampling").Sampler(
        neuron_config
    )


def _load_compiled(path: str) -> CompiledModel:
    """In place of ``torch.jit.load``: the graphs of the configuration that lies beside ``model.pt``."""
    directory = Path(path).parent
    config = AutoConfig.from_pretrained(directory)
    neuron_config = config_class().from_pretrained(str(directory))
    config.torch_dtype = neuron_config.torch_dtype
    return compile_graphs(model_class(config.model_type), config, neuron_config)


@contextmanager
def fake_device(instance_type: str = "trn1", cores: int = 2) -> Iterator[list[CompiledModel]]:
    """A machine with a device, as far as loading asks: its kind, its cores, and what reads ``model.pt``.

    The list fills with what was loaded.
    """
    stand_in()
    loaded: list[CompiledModel] = []

    def load(path: str) -> CompiledModel:
        loaded.append(_load_compiled(path))
        return loaded[-1]

    name = "optimum.neuron.models.inference.backend.pretrained_model"
    pretrained = import_module(name)
    patches = [mock.patch.object(torch.jit, "load", load)]
    if hasattr(pretrained, "current_instance_type"):
        patches += [
            mock.patch.object(pretrained, "current_instance_type", return_value=instance_type),
            mock.patch.object(pretrained, "get_available_cores", return_value=cores),
            mock.patch.object(pretrained, "get_neuron_device_memory", return_value="unknown"),
        ]
    with ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        yield loaded
