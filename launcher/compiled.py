"""What the environment may ask of a model that was compiled for Neuron.

The rules are those of TGI's Neuron entry point, a script that runs before TGI's launcher. It compares the
variables with the model and exports what the model was compiled for, so that a smaller ``MAX_BATCH_SIZE`` or
``MAX_TOTAL_TOKENS`` becomes the compiled one, while a flag keeps its own say. Where all six of its variables
are set, it does nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from launcher.parameters import Given, Parameters, Source
from neuron_server.errors import ConfigError
from neuron_server.models import DTYPES, ModelFacts, StaticFacts

CORES, CAST = "HF_NUM_CORES", "HF_AUTO_CAST_TYPE"
_FLAGS = ("max_batch_size", "max_total_tokens", "max_input_tokens", "max_batch_prefill_tokens")


#: Names that optimum-neuron 0.0.21 knew, and nothing since.
_FORMER = {"HF_BATCH_SIZE": "MAX_BATCH_SIZE", "HF_SEQUENCE_LENGTH": "MAX_TOTAL_TOKENS"}


def former_names(environ: Mapping[str, str]) -> tuple[str, ...]:
    """A sentence for each variable that is set and that nobody reads any more."""
    return tuple(
        f"{old} has no effect: its name is {new} now" for old, new in _FORMER.items() if environ.get(old)
    )


@dataclass(frozen=True, slots=True)
class Settled:
    """The parameters to plan with, and what to tell about it."""

    parameters: Parameters
    warnings: tuple[str, ...] = ()


def settle(parameters: Parameters, facts: ModelFacts, environ: Mapping[str, str]) -> Settled:
    """Apply the rules; a plain model has none. Raises ``ConfigError`` (rule ``neuron_environment``)."""
    static = facts.static
    if static is None or _all_set(parameters, environ):
        return Settled(parameters)
    _check_cores(static, environ)
    _check_cast(static, environ)
    compiled = {"max_batch_size": static.batch_size, "max_total_tokens": static.sequence_length}
    smaller = {name: value for name, value in compiled.items() if _asks_for_less(parameters[name], value)}
    given = {name: Given(value, Source.MODEL, name) for name, value in smaller.items()}
    warnings = (
        f"{parameters[name]}: {value} is served, as the model was compiled for that"
        for name, value in smaller.items()
    )
    return Settled(parameters.replaced(given), (*warnings, *former_names(environ)))


def _all_set(parameters: Parameters, environ: Mapping[str, str]) -> bool:
    return all(environ.get(name) for name in (CORES, CAST)) and all(parameters[n].by_user for n in _FLAGS)


def _asks_for_less(given: Given, compiled: int) -> bool:
    return given.source is Source.ENVIRONMENT and 0 < given.count < compiled


def _check_cores(static: StaticFacts, environ: Mapping[str, str]) -> None:
    text = environ.get(CORES, "")
    if not text:
        return
    if not text.isdecimal() or not int(text):
        raise _invalid(f"{CORES} is {text!r}, but must be a number of cores")
    if static.cores is not None and static.cores < int(text):
        raise _invalid(
            f"{CORES} is {text}, but the model was compiled for {static.cores} cores: set it to that or "
            "less, or leave it out"
        )


def _check_cast(static: StaticFacts, environ: Mapping[str, str]) -> None:
    text = environ.get(CAST, "")
    if not text:
        return
    wanted = DTYPES.get(text.removeprefix("torch.").lower())
    if wanted is None:
        raise _invalid(f"{CAST} is {text!r}, but must be one of {', '.join(sorted(set(DTYPES.values())))}")
    if static.dtype is not None and static.dtype != wanted:
        raise _invalid(
            f"{CAST} is {text}, but the model was compiled for {static.dtype}: set it to that, or leave it "
            "out"
        )


def _invalid(message: str) -> ConfigError:
    return ConfigError(f"Invalid neuron config and env. {message}", rule="neuron_environment")
