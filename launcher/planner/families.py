"""Which release of optimum-neuron serves a model type, with what limits.

Facts of optimum-neuron's releases: 0.4.5 (the NxD generation) is what the image holds by default; gpt2, opt,
bloom and mistral were last in 0.1.0, of the generation before, which is the image built with
``NEURON_STACK=legacy``.
"""

from __future__ import annotations

from dataclasses import dataclass

from neuron_server.compiled_model import Generation
from neuron_server.errors import ModelError

CURRENT = "optimum-neuron 0.4.5"
LEGACY = "optimum-neuron 0.0.28"
CURRENT_IMAGE = "the default image"
LEGACY_IMAGE = "the image built with NEURON_STACK=legacy"

_NXD = frozenset(
    ("granite", "llama", "llama4_text", "mixtral", "phi3", "qwen2", "qwen3", "qwen3_moe", "smollm3")
)
#: Served by the legacy generation only; whether it inserts requests (continuous batching).
_LEGACY_ONLY = {"gpt2": False, "opt": False, "bloom": False, "mistral": True}
#: Legacy families that insert requests when the batch has more than one slot.
_LEGACY_INSERTS = frozenset(("llama", "mistral", "qwen2", "granite"))
_UNRELEASED = frozenset(("gemma3_text", "gemma3", "idefics3"))


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
        known = ", ".join(sorted(_NXD | set(_LEGACY_ONLY)))
        reason = f"model type {model_type!r} was in no release of optimum-neuron; those were: {known}"
    raise ModelError(reason, rule="unsupported_model")


def mode(support: Support, model_type: str, *, tensor_parallel: int, batch_size: int) -> Mode:
    """The defaults that optimum-neuron exports this configuration with."""
    if support.generation == "legacy":
        return Mode(inserts=batch_size > 1 and model_type in _LEGACY_INSERTS, on_device_sampling=False)
    if model_type == "mixtral":
        return Mode(inserts=False, on_device_sampling=False)
    inserts = batch_size > 1
    # With SDK 2.24 these gave wrong text when they sampled on the device; upstream switches it off since.
    host = model_type in ("qwen2", "qwen3") and tensor_parallel == 2 and inserts
    return Mode(inserts, on_device_sampling=not host)


def _legacy_notes(model_type: str) -> tuple[str, ...]:
    notes = ["sampling on the host (the device hands over logits), so every sampling parameter works"]
    if model_type not in _LEGACY_INSERTS:
        notes.append(
            "no continuous batching: each new request prefills the whole batch again, so few slots are better"
            " than many where requests come one by one"
        )
    return tuple(notes)


def _nxd_notes(model_type: str) -> tuple[str, ...]:
    if model_type == "mixtral":
        return (
            "exported without continuous batching and with sampling on the host: each new request prefills "
            "the whole batch again",
        )
    return (
        "sampling on the device: no log-probabilities, seeds, penalties, grammars or exact top-p, unless the "
        "model is exported with sampling on the host",
    )
