"""Which release of optimum-neuron serves a model type, with what limits.

Facts of optimum-neuron's releases: 0.4.5 (the NxD generation) is what the image holds by default; gpt2, opt,
bloom and mistral were last in 0.1.0, of the generation before, which is the image built with
``NEURON_STACK=legacy``.
"""

from __future__ import annotations

from dataclasses import dataclass

from launcher.neuron_checks import COMPILED_SINCE, compiled_by
from neuron_server.compiled_model import ALWAYS_STATIC, Generation
from neuron_server.errors import ModelError

_CURRENT, _LEGACY = "0.4.5", "0.0.28"
CURRENT = f"optimum-neuron {_CURRENT}"
LEGACY = f"optimum-neuron {_LEGACY}"
CURRENT_IMAGE = "the default image"
LEGACY_IMAGE = "the image built with NEURON_STACK=legacy"

_NXD = frozenset(compiled_by(_CURRENT))
#: Served by the legacy generation only.
_LEGACY_ONLY = frozenset(compiled_by(_LEGACY)) - _NXD
_UNRELEASED = frozenset(COMPILED_SINCE) - _NXD - _LEGACY_ONLY
#: Families whose device is not let sample on two cores: with SDK 2.24 the text was wrong then.
_HOST_ON_TWO_CORES = ("qwen2", "qwen3")


@dataclass(frozen=True, slots=True)
class Support:
    """Who serves a model type; ``reason``: why not the current release."""

    generation: Generation
    release: str
    image: str
    reason: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Mode:
    """How one configuration runs: requests inserted or cache rebuilt, tokens or logits from the device."""

    inserts: bool
    on_device_sampling: bool


def support(model_type: str, compiled: Generation | None = None) -> Support:
    """Who serves ``model_type``; a model that is compiled already needs the generation that compiled it.

    Raises ``ModelError`` (rule ``unsupported_model``).
    """
    if compiled == "legacy" or (compiled is None and model_type in _LEGACY_ONLY):
        why = "was compiled by it" if compiled else "is in no later release"
        return Support(
            "legacy",
            LEGACY,
            LEGACY_IMAGE,
            f"{model_type} {why}",
            () if compiled else _legacy_notes(model_type),
        )
    if compiled == "nxd" or model_type in _NXD:
        return Support("nxd", CURRENT, CURRENT_IMAGE, notes=() if compiled else _nxd_notes(model_type))
    if model_type in _UNRELEASED:
        reason = (
            f"model type {model_type!r} is in no release of optimum-neuron, only in its development branch"
        )
    else:
        known = ", ".join(sorted(_NXD | _LEGACY_ONLY))
        reason = f"model type {model_type!r} was in no release of optimum-neuron; those were: {known}"
    raise ModelError(reason, rule="unsupported_model")


def mode(support: Support, model_type: str, *, tensor_parallel: int, batch_size: int) -> Mode:
    """The defaults that optimum-neuron exports this configuration with."""
    if support.generation == "legacy":
        return Mode(inserts=batch_size > 1 and model_type not in ALWAYS_STATIC, on_device_sampling=False)
    if model_type == "mixtral":
        return Mode(inserts=False, on_device_sampling=False)
    inserts = batch_size > 1
    host = model_type in _HOST_ON_TWO_CORES and tensor_parallel == 2 and inserts
    return Mode(inserts, on_device_sampling=not host)


def _legacy_notes(model_type: str) -> tuple[str, ...]:
    notes = ["sampling on the host (the device hands over logits), so every sampling parameter works"]
    if model_type in ALWAYS_STATIC:
        notes.append(
            "no continuous batching: each new request prefills the whole batch again, so few slots are better"
            " than many where requests come one by one"
        )
    if model_type == "gpt2":
        notes.append("no graph for prefill: prompts go token by token through the graph for decode")
    return tuple(notes)


def _nxd_notes(model_type: str) -> tuple[str, ...]:
    if model_type == "mixtral":
        return (
            "exported without continuous batching and with sampling on the host: each new request prefills "
            "the whole batch again",
        )
    where = "sampling on the device"
    if model_type in _HOST_ON_TWO_CORES:
        where += " (with 2 cores per replica and several slots optimum-neuron leaves it to the host)"
    return (
        f"{where}: no log-probabilities, seeds, penalties, grammars or exact top-p, unless the export has "
        "--no-on-device-sampling, which cost 2.4 times the throughput where both were measured",
    )
