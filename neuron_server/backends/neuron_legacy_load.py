"""Opening a model that optimum-neuron 0.0.19 to 0.1 compiled, with that release's own class.

Everything that can be known to fail is found before the package is imported; what upstream raises all the
same becomes a ``ModelError`` that says what to do about it.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from neuron_server.compiled_model import StaticFacts, check_compiled_files
from neuron_server.config import GeneratorConfig
from neuron_server.errors import ModelError

logger = logging.getLogger(__name__)

#: What the backend calls; a release that lacks one of these is not one it can drive.
USED: Mapping[str, tuple[str, ...]] = {
    "from_pretrained": ("model_id", "export"),
    "prepare_inputs_for_prefill": ("input_ids", "attention_mask", "seq_ids"),
    "forward": ("input_ids", "cache_ids", "start_ids", "return_dict"),
}

_IMAGE = "an image built with --build-arg NEURON_STACK=legacy has it"


class LegacyModel(Protocol):
    """The part of ``NeuronModelForCausalLM`` that is used; ``continuous_batching`` may be any truth value."""

    continuous_batching: object

    def prepare_inputs_for_prefill(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, seq_ids: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor | None]:
        """Left-padded rows in, the arguments of one call out."""
        ...

    def __call__(self, *, return_dict: bool, **inputs: torch.Tensor | None) -> Any:
        """Run ``input_ids``, ``cache_ids``, ``start_ids``; Any: a ModelOutput, element 0 logits (n, 1, V)."""
        ...


def check_files(config: GeneratorConfig, static: StaticFacts) -> None:
    """Raise ``ModelError`` for what upstream would stumble over: a path, or files that are not there."""
    if "@" in config.model_path:
        raise ModelError(
            f"--model-path {config.model_path!r}: this generation of optimum-neuron takes what follows an @"
            " for a revision; the path of the directory must not contain one",
            rule="model",
        )
    check_compiled_files(Path(config.model_path), static)


def open_model(config: GeneratorConfig, static: StaticFacts) -> LegacyModel:
    """The compiled model, loaded on its NeuronCores, which this process then owns for its life.

    Raises ``ModelError``: ``backend_unavailable``, ``neuron_version``, ``neuron_cores`` ...
    """
    model_class = _model_class()
    try:
        model: LegacyModel = model_class.from_pretrained(config.model_path, export=False)
    except Exception as error:
        # The edge to upstream: compiler checks, weight loading and the runtime each raise what they like.
        logger.exception("optimum-neuron could not load %s", config.model_path)
        raise _translated(error, static) from error
    return model


def missing_from(model_class: Any) -> list[str]:  # Any: a class of a package that may be absent
    """One line for each method or keyword of ``USED`` that the installed release's class lacks."""
    lines = []
    for name, keywords in USED.items():
        method = getattr(model_class, name, None)
        if method is None:
            lines.append(f"{model_class.__name__}.{name} does not exist")
            continue
        known = inspect.signature(method).parameters
        lines += [f"{model_class.__name__}.{name} takes no {word}" for word in keywords if word not in known]
    return lines


def _model_class() -> Any:  # Any: a class of a package that may be absent
    try:
        model_class = importlib.import_module("optimum.neuron").NeuronModelForCausalLM
    except (ImportError, AttributeError, RuntimeError) as error:  # RuntimeError: transformers' lazy modules
        raise ModelError(
            "--backend neuron_legacy needs optimum-neuron 0.0.2x to 0.1 with transformers-neuronx, which"
            f" cannot be imported here ({error}); {_IMAGE}",
            rule="backend_unavailable",
        ) from error
    missing = missing_from(model_class)
    if missing:
        raise ModelError(
            "--backend neuron_legacy cannot drive the installed optimum-neuron, which is not one of 0.0.2x to"
            f" 0.1: {'; '.join(missing)}; {_IMAGE}",
            rule="backend_unavailable",
        )
    return model_class


def _translated(error: Exception, static: StaticFacts) -> ModelError:
    """What upstream raised while loading, as one of our rules and with what to do about it."""
    told = f"the compiled model could not be loaded: {type(error).__name__}: {error}"
    text = str(error)
    if isinstance(error, ImportError) or "is not installed" in text:
        return ModelError(f"{told}; {_IMAGE}", rule="backend_unavailable")
    if "newer than current compiler" in text:
        return ModelError(
            f"{told} Use an image with neuronx-cc {static.compiler_version} or later, or compile the model"
            " again with this one",
            rule="neuron_version",
        )
    if "matching NEFF" in text:
        return ModelError(
            f"{told} The installed packages make other graphs of this model than those that compiled it:"
            " compile it again with this image",
            rule="neuron_version",
        )
    if "exceeds the number of cores available" in text:
        seen = {name: os.environ.get(name) for name in ("NEURON_RT_VISIBLE_CORES", "NEURON_RT_NUM_CORES")}
        set_to = ", ".join(f"{name}={value}" for name, value in seen.items() if value is not None)
        return ModelError(
            f"{told} The model needs {static.cores} NeuronCores; check --num-shard, the devices given to the"
            f" container, and the environment ({set_to or 'no NEURON_RT_ variable is set'})",
            rule="neuron_cores",
        )
    if isinstance(error, KeyError) or "doesn't support task" in text:
        return ModelError(
            f"{told}; the installed release does not serve that type or task", rule="unsupported_model"
        )
    return ModelError(told, rule="model")
