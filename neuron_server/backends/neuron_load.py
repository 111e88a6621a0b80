"""Loading a model that optimum-neuron 0.3 or 0.4 compiled: everything that can be in the way, by name.

What the files say is checked before anything of Neuron is imported, and versions before the weights are read:
optimum-neuron takes only models of exactly its own version and compiler, and says so late and in passing.
"""

from __future__ import annotations

import importlib
import json
import logging
from importlib import metadata
from pathlib import Path
from typing import Any

from neuron_server.backend import BackendInfo
from neuron_server.backends.neuron_interface import missing_in_model, missing_names
from neuron_server.config import GeneratorConfig
from neuron_server.errors import ConfigError, ModelError
from neuron_server.models import ModelFacts, StaticFacts
from neuron_server.shape import StaticShape

logger = logging.getLogger(__name__)

_INSTALL = (
    "use an image with the AWS Neuron packages and optimum-neuron (pip install 'neuronx-tgi[neuron]' on an "
    "Inferentia2 machine), or --backend cpu with the plain model"
)
_COMPILE = "compile it again with what is installed (text-generation-server export)"

#: What a compiled model may say that this backend does not serve: key -> (the values it serves, the reason).
_SERVED: dict[str, tuple[tuple[Any, ...], str]] = {  # Any: JSON
    "_serialized_key": (
        (None, "NxDNeuronConfig"),
        "only text models of the NxD backend are served (HLO models of 0.2 are not)",
    ),
    "speculation_length": ((None, 0), "a speculative graph serves one request at a time, greedily"),
    "prefill_chunk_size": ((None, 0), "chunked prefill needs a later release than 0.4.5"),
    "output_logits": ((None, False), "logits beside the result are not read"),
    "padding_side": ((None, "right"), "prompts are padded on the right"),
    "async_mode": ((None, False), "every call waits for its result"),
    "is_chunked_prefill": ((None, False), "prompts are prefilled whole"),
    # 0.3 chooses the prefill graph by counting the tokens of a prompt that are not the pad token.
    "enable_bucketing": ((None, False), "a prompt with pad tokens in it would be cut short without a word"),
}

#: The one model of this process: the runtime fixes its cores when the first is loaded.
_loaded: list[str] = []


def check_compiled(path: str, facts: ModelFacts) -> StaticFacts:
    """What the model's files say of its compilation, if this backend can serve it; nothing is imported.

    Raises ``ModelError``: ``not_a_neuron_model``, ``unsupported_model`` or ``config_corrupt``.
    """
    static = facts.static
    if static is None:
        raise ModelError(
            f"the model in {path} was not compiled for Neuron: it has no neuron_config.json; "
            "compile it (text-generation-server export), or serve it with --backend cpu",
            rule="not_a_neuron_model",
        )
    if static.generation != "nxd":
        raise ModelError(
            f"the model in {path} was compiled by optimum-neuron 0.1 or earlier (its config.json has a "
            "neuron object, and there is no neuron_config.json); the backend for it is neuron_legacy",
            rule="not_a_neuron_model",
        )
    written = json.loads((Path(path) / "neuron_config.json").read_bytes())
    for key, (served, reason) in _SERVED.items():
        if written.get(key) not in served:
            raise ModelError(
                f"the model in {path} was compiled with {key} {written[key]!r}, which is not "
                f"served: {reason}",
                rule="unsupported_model",
            )
    batch, most = written.get("batch_size"), written.get("max_batch_size")
    if batch is not None and most is not None and batch != most:
        raise ModelError(
            f"the model in {path} was compiled with batch_size {batch} and max_batch_size {most}; "
            "only equal ones are served",
            rule="unsupported_model",
        )
    if static.max_context_length < 2:
        raise ModelError(
            f"the model in {path} was compiled with max_context_length {static.max_context_length}; "
            "the least is 2",
            rule="unsupported_model",
        )
    return static


def backend_info(facts: ModelFacts, static: StaticFacts, config: GeneratorConfig) -> BackendInfo:
    """What the backend will be; raises ``ConfigError`` where ``config`` asks for another shape."""
    compiled = StaticShape(static.batch_size, static.sequence_length)
    longest = min(static.max_context_length, compiled.max_length - 1)
    if config.batch_size != compiled.batch_size:
        raise ConfigError(
            f"--batch-size is {config.batch_size}, but the model was compiled for {compiled.batch_size}: "
            f"set it to {compiled.batch_size}",
            rule="batch_size",
        )
    if config.max_length != compiled.max_length:
        raise ConfigError(
            f"--max-length is {config.max_length}, but the model was compiled for {compiled.max_length}: "
            f"set it to {compiled.max_length}",
            rule="max_total_tokens",
        )
    if not 1 <= config.max_prompt_tokens <= longest:
        raise ConfigError(
            f"--max-prompt-tokens is {config.max_prompt_tokens}, but must be from 1 to {longest}: "
            f"the prefill graph of the model is {static.max_context_length} tokens wide",
            rule="max_input_tokens",
        )
    return BackendInfo(
        shape=compiled,
        max_prompt_tokens=config.max_prompt_tokens,
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
