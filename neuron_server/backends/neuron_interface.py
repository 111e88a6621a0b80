"""What this server uses of optimum-neuron, as a list that can be checked against the installed release.

Upstream changes its interface in minor releases (0.4.4 dropped the input helpers and the attention mask), and
a wrong guess is found here by name instead of on a device by its results.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

#: Keyword arguments of ``NeuronModelForCausalLM.forward``.
FORWARD = ("input_ids", "position_ids", "seq_ids", "sampling_params")
#: Attributes of a loaded model's ``neuron_config``, which are parameters of ``NxDNeuronConfig``.
CONFIG = ("batch_size", "sequence_length", "max_context_length", "continuous_batching", "on_device_sampling")


def missing_names(factory: Any) -> list[str]:  # Any: optimum-neuron is untyped
    """One line for each thing that ``NeuronModelForCausalLM`` lacks; empty when it can be loaded with."""
    load = getattr(factory, "from_pretrained", None)
    return [] if callable(load) else [f"{_named(factory)} has no from_pretrained"]


def missing_in_model(model: Any, config: Any) -> list[str]:  # Any: as above
    """The same for the class (or object) of a model and of its ``neuron_config``."""
    forward = getattr(model, "forward", None)
    lines = [] if callable(forward) else [f"{_named(model)} has no forward"]
    lines += [f"{_named(model)}.forward takes no {name}" for name in FORWARD if not _takes(forward, name)]
    return lines + [f"{_named(config)} has no {name}" for name in CONFIG if not _has(config, name)]


def _takes(function: Callable[..., object] | None, name: str) -> bool:
    return function is not None and name in inspect.signature(function).parameters


def _has(config: Any, name: str) -> bool:  # Any: as above
    if inspect.isclass(config):
        return _takes(config.__init__, name)
    return hasattr(config, name)


def _named(thing: Any) -> str:  # Any: as above
    return thing.__name__ if inspect.isclass(thing) else type(thing).__name__
