"""Loading a model that optimum-neuron 0.3 or 0.4 compiled: everything that can be in the way, by name.

What the files say has been checked (``compiled_facts.py``). Versions are, before the weights are read:
optimum-neuron takes only models of exactly its own version and compiler, and says so late and in passing.
"""

from __future__ import annotations

import importlib
import logging
from importlib import metadata
from typing import Any

from neuron_server.backend import BackendInfo
from neuron_server.backends.neuron_interface import missing_in_model, missing_names
from neuron_server.errors import ModelError
from neuron_server.models import ModelFacts, StaticFacts
from neuron_server.shape import StaticShape

logger = logging.getLogger(__name__)

_INSTALL = (
    "use an image with the AWS Neuron packages and optimum-neuron (pip install 'neuronx-tgi[neuron]' on an "
    "Inferentia2 machine), or --backend cpu with the plain model"
)
_COMPILE = "compile it again with what is installed (text-generation-server export)"

#: The one model of this process: the runtime fixes its cores when the first is loaded.
_loaded: list[str] = []


def backend_info(facts: ModelFacts, static: StaticFacts, max_prompt_tokens: int) -> BackendInfo:
    """What the backend of a model with these facts will be."""
    return BackendInfo(
        shape=StaticShape(static.batch_size, static.sequence_length),
        max_prompt_tokens=max_prompt_tokens,
        vocab_size=facts.vocab_size,
        # One slot is its own batch: rewriting all slots rewrites only it.
        prefill_mode="insert" if static.continuous_batching or static.batch_size == 1 else "rebuild",
        output="tokens" if static.on_device_sampling else "logits",
        dtype=static.dtype or "bfloat16",  # optimum-neuron's default
        device=f"neuron ({static.target or 'any'} target, tp {static.tensor_parallel or static.cores or 1})",
        max_top_k=static.max_top_k if static.on_device_sampling else 0,
    )


def load_model(path: str, static: StaticFacts) -> Any:  # Any: optimum-neuron is untyped
    """The model on its NeuronCores; minutes for a large one. Raises ``ModelError``, and never loads twice."""
    check_versions(path, static)
    if _loaded:
        raise ModelError(
            f"this process has loaded {_loaded[0]} already: the Neuron runtime fixes the cores of a process "
            f"at its first model, so {path} needs a process of its own"
        )
    try:
        factory = importlib.import_module("optimum.neuron").NeuronModelForCausalLM
    except (ImportError, RuntimeError) as error:  # its lazy modules turn the one into the other
        raise ModelError(
            f"--backend neuron cannot run here: importing optimum-neuron failed ({error}); {_INSTALL}",
            rule="backend_unavailable",
        ) from error
    _refuse_drift(missing_names(factory))
    _loaded.append(path)
    try:
        model = factory.from_pretrained(path)
    except Exception as error:
        # The edge to upstream: its loading imports, reads, downloads and starts a device; anything can come.
        logger.exception("optimum-neuron could not load %s", path)
        raise _explained(path, error) from error
    _check_loaded(path, model, static)
    return model


def _refuse_drift(missing: list[str]) -> None:
    if missing:
        raise ModelError(
            f"optimum-neuron {metadata.version('optimum-neuron')} is not one that this server can use: "
            f"{'; '.join(missing)}; it is written for 0.3 to 0.4.5",
            rule="neuron_version",
        )


def check_versions(path: str, static: StaticFacts) -> None:
    """Raise ``ModelError`` where the model is not of the installed optimum-neuron and compiler."""
    try:
        installed = metadata.version("optimum-neuron")
    except metadata.PackageNotFoundError as error:
        raise ModelError(
            f"--backend neuron cannot run here: optimum-neuron is not installed; {_INSTALL}",
            rule="backend_unavailable",
        ) from error
    if static.optimum_version not in (None, installed):
        raise ModelError(
            f"the model in {path} was compiled by optimum-neuron {static.optimum_version}, but {installed} "
            f"is installed, and it loads only its own models: use an image with {static.optimum_version}, or "
            f"{_COMPILE}",
            rule="neuron_version",
        )
    try:
        compiler = importlib.import_module("neuronxcc").__version__
    except ImportError as error:
        raise ModelError(
            f"--backend neuron cannot run here: the Neuron compiler (neuronx-cc) is not installed; "
            f"{_INSTALL}",
            rule="backend_unavailable",
        ) from error
    if static.compiler_version not in (None, compiler):
        raise ModelError(
            f"the model in {path} was compiled by neuronx-cc {static.compiler_version}, but {compiler} is "
            "installed, and optimum-neuron wants them equal: use an image with "
            f"{static.compiler_version}, or {_COMPILE}",
            rule="neuron_version",
        )


_DOCTOR = "text-generation-launcher doctor says what it sees of the device, its driver and its runtime"

#: Words of upstream's message -> (rule, what to do); the first that occurs counts.
_REMEDIES: tuple[tuple[str, str, str], ...] = (
    (
        "missing mandatory",
        "config_corrupt",
        f"its neuron_config.json is not what an export writes: {_COMPILE}",
    ),
    ("unexpected keyword", "neuron_version", f"another release wrote its neuron_config.json: {_COMPILE}"),
    ("No Neuron device", "no_neuron_device", _DOCTOR),
    ("Neuron cores", "neuron_cores", "choose an instance with more, or compile with a smaller tp_degree"),
    ("instance type", "neuron_target", "compile it for this kind of instance, or run it on the other"),
    ("Neuron Runtime could not", "neuron_driver", _DOCTOR),
    ("nrt_init", "neuron_driver", _DOCTOR),
    ("Checkpoint file not found", "weights_missing", "its files name no checkpoint to fetch weights from"),
)


def _explained(path: str, error: Exception) -> ModelError:
    said = f"{type(error).__name__}: {error}"
    for words, rule, remedy in _REMEDIES:
        if words in str(error):
            return ModelError(f"optimum-neuron refused the model in {path} ({said}); {remedy}", rule=rule)
    if isinstance(error, ImportError):
        return ModelError(
            f"--backend neuron cannot run here: a Neuron package is missing ({said}); {_INSTALL}",
            rule="backend_unavailable",
        )
    return ModelError(f"optimum-neuron could not load the model in {path} ({said})", rule="model")


def _check_loaded(path: str, model: Any, static: StaticFacts) -> None:
    """What was loaded is what the files said: upstream has its own reading of them, and its own defaults."""
    loaded = model.neuron_config
    _refuse_drift(missing_in_model(model, loaded))
    for name, said in (
        ("batch_size", static.batch_size),
        ("sequence_length", static.sequence_length),
        ("max_context_length", static.max_context_length),
        ("continuous_batching", static.continuous_batching),
        ("on_device_sampling", static.on_device_sampling),
    ):
        if getattr(loaded, name) != said:
            raise ModelError(
                f"{path}/neuron_config.json: {name} was read as {said!r}, but optimum-neuron loaded "
                f"{getattr(loaded, name)!r}",
                rule="config_corrupt",
            )
