"""What a compiled model's files say, checked against the backend and the settings that it is loaded with."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from neuron_server.compiled_model import Generation, StaticFacts, check_servable
from neuron_server.config import GeneratorConfig
from neuron_server.errors import ConfigError, ModelError
from neuron_server.models import ModelFacts, check_supported, read_model

#: Generation -> the backend for it, what compiled its models, and how one knows.
_BACKENDS: Mapping[Generation, tuple[str, str]] = MappingProxyType(
    {
        "nxd": ("neuron", "optimum-neuron 0.2 or later (it has a neuron_config.json)"),
        "legacy": ("neuron_legacy", "optimum-neuron 0.1 or earlier (its config.json has a neuron object)"),
    }
)


def compiled_facts(config: GeneratorConfig, generation: Generation) -> tuple[ModelFacts, StaticFacts]:
    """What the model in ``config.model_path`` says of itself, if a backend of ``generation`` can serve it so.

    Nothing is imported or loaded. Raises ``ModelError`` (``not_a_neuron_model``, ``unsupported_model``, or as
    ``read_model``), and ``ConfigError`` where the config asks for a shape that the model does not have.
    """
    facts = read_model(config.model_path)
    static = facts.static
    if static is None:
        raise ModelError(
            f"the model in {config.model_path} was not compiled for Neuron: it has no neuron_config.json, "
            "and its config.json no neuron object; compile it (text-generation-server export), or serve it "
            "with --backend cpu",
            rule="not_a_neuron_model",
        )
    if static.generation != generation:
        backend, by = _BACKENDS[static.generation]
        raise ModelError(
            f"the model in {config.model_path} was compiled by {by}; the backend for it is {backend}",
            rule="not_a_neuron_model",
        )
    check_servable(config.model_path, static)
    check_supported(facts)
    _check_shape(config, static)
    return facts, static


def _check_shape(config: GeneratorConfig, static: StaticFacts) -> None:
    if config.batch_size != static.batch_size:
        raise ConfigError(
            f"--batch-size is {config.batch_size}, but the model was compiled for {static.batch_size}: "
            f"set it to {static.batch_size}",
            rule="batch_size",
        )
    if config.max_length != static.sequence_length:
        raise ConfigError(
            f"--max-length is {config.max_length}, but the model was compiled for {static.sequence_length}: "
            f"set it to {static.sequence_length}",
            rule="max_total_tokens",
        )
    longest = min(static.max_context_length, static.sequence_length - 1)
    if not 1 <= config.max_prompt_tokens <= longest:
        raise ConfigError(
            f"--max-prompt-tokens is {config.max_prompt_tokens}, but must be from 1 to {longest}: the "
            f"prefill graph is {static.max_context_length} tokens wide, and a slot of "
            f"{static.sequence_length} needs room for one more",
            rule="max_input_tokens",
        )
