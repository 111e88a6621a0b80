"""Whether a compiled model can be loaded by the software and on the device that are here, before it is tried.

optimum-neuron says some of this itself, minutes into a load and in the words of its own code; the rules are
its own (0.0.28, 0.3.0 and 0.4.5). Driver against runtime is ``launcher/device/driver.py``'s. Pure.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

from launcher.device.inventory import Inventory
from launcher.device.stack import Stack
from launcher.device.versions import numbers
from neuron_server.compiled_model import TARGETS, check_servable
from neuron_server.errors import ModelError
from neuron_server.models import ModelFacts, StaticFacts

#: model_type -> first and last release of optimum-neuron that compiles it for text generation (``None``: all
#: since). Its development version after 0.4.5 is the newest we know.
COMPILED_SINCE: Mapping[str, tuple[tuple[int, ...], tuple[int, ...] | None]] = MappingProxyType(
    {
        "gpt2": ((0, 0, 11), (0, 1, 0)),
        "opt": ((0, 0, 21), (0, 1, 0)),
        "bloom": ((0, 0, 21), (0, 1, 0)),
        "mistral": ((0, 0, 21), (0, 1, 0)),
        "llama": ((0, 0, 11), None),
        "mixtral": ((0, 0, 28), None),
        "qwen2": ((0, 0, 28), None),
        "granite": ((0, 0, 28), None),
        "phi3": ((0, 1, 0), None),
        "qwen3": ((0, 3, 0), None),
        "llama4_text": ((0, 4, 0), None),
        "qwen3_moe": ((0, 4, 0), None),
        "smollm3": ((0, 4, 0), None),
        "gemma3_text": ((0, 4, 6), None),
    }
)
_NEWEST_KNOWN = (0, 4, 6)
#: The last release of the legacy generation, and the first whose NxD models the neuron backend takes.
LAST_LEGACY, _FIRST_NXD = (0, 1, 0), (0, 3, 0)

_IMAGE = {
    "legacy": "the image built with NEURON_STACK=legacy",
    "nxd": "the image built for optimum-neuron 0.4.5",
}


def check_loadable(facts: ModelFacts, stack: Stack, inventory: Inventory, *, model_id: str = "MODEL") -> None:
    """Raise ``ModelError`` for the first thing that keeps the model from loading here; a plain one has none.

    Rules ``backend_unavailable`` (no optimum-neuron), ``neuron_version``, ``unsupported_model``,
    ``neuron_target`` and ``neuron_cores``. What is not known of model or machine is not held against it.
    """
    for error in mismatches(facts, stack, inventory, model_id=model_id):
        raise error


def mismatches(
    facts: ModelFacts, stack: Stack, inventory: Inventory, *, model_id: str = "MODEL"
) -> Iterator[ModelError]:
    """All that keeps the model from loading here, the most fundamental first."""
    static = facts.static
    if static is None:
        return
    try:
        check_servable(model_id, static)
    except ModelError as error:
        yield error
    if stack.optimum_neuron is None:
        yield ModelError(
            "the model was compiled for Neuron, but optimum-neuron is not installed here: use "
            f"{_IMAGE[static.generation]}, or --backend cpu",
            rule="backend_unavailable",
        )
        return
    again = f"compile it again with what is installed here: {export_command(static, model_id)}"
    rules: tuple[Callable[[], ModelError | None], ...] = (
        lambda: _generation(static, stack.optimum_neuron or "", again),
        lambda: _model_type(facts, stack.optimum_neuron or ""),
        lambda: _optimum(static, stack.optimum_neuron or "", again),
        lambda: _compiler(static, stack.compiler, again),
        lambda: _target(static, inventory, model_id),
        lambda: _cores(static, inventory, model_id),
    )
    yield from filter(None, (rule() for rule in rules))


def notes(static: StaticFacts) -> tuple[str, ...]:
    """What is odd about a compiled model without keeping it from loading; one sentence each."""
    found = []
    if static.unknown:
        found.append(
            f"The model's Neuron configuration has keys that this release does not know: "
            f"{', '.join(static.unknown[:8])}{' ...' if len(static.unknown) > 8 else ''}; they are ignored"
        )
    if static.generation == "nxd" and (static.optimum_version is None or static.compiler_version is None):
        found.append(
            "The model does not say which versions compiled it, so whether it loads here is not known before"
        )
    return tuple(found)


def target_of(instance_type: str | None) -> str | None:
    """``trn1`` for ``inf2.8xlarge``; ``None`` for what is unknown or no Neuron instance."""
    return None if instance_type is None else TARGETS.get(instance_type.partition(".")[0])


def export_command(static: StaticFacts, model_id: str = "MODEL", **changes: object) -> str:
    """The command line that compiles this model again; ``changes`` are other values of its flags."""
    source, revision = static.checkpoint_id or model_id, static.checkpoint_revision
    flags: dict[str, object] = {
        "revision": revision if static.checkpoint_id else None,
        "batch_size": static.batch_size,
        "sequence_length": static.sequence_length,
        "max_context_length": (
            static.max_context_length if static.max_context_length < static.sequence_length else None
        ),
        "tensor_parallel_size": static.tensor_parallel,
        "dtype": static.dtype,
        **changes,
    }
    words = ["text-generation-server", "export", source, "--output", "DIR"]
    for name, value in flags.items():
        words += [] if value is None else ["--" + name.replace("_", "-"), str(value)]
    if static.generation == "nxd":
        words.append("--on-device-sampling" if static.on_device_sampling else "--no-on-device-sampling")
    return shlex.join(words)


# -- one rule each -------------------------------------------------------------------------------------------


def _generation(static: StaticFacts, installed: str, again: str) -> ModelError | None:
    have = numbers(installed)
    if static.hlo:
        return _version(
            f"the model was compiled by the HLO backend of optimum-neuron {static.optimum_version or '0.2'}, "
            f"which no release served here has: {again}"
        )
    if static.generation == "legacy" and have > LAST_LEGACY:
        return _version(
            "the model was compiled by optimum-neuron before 0.2 (its config.json has a neuron object), "
            f"which the installed {installed} cannot load: use {_IMAGE['legacy']}, or {again}"
        )
    if static.generation == "nxd" and have < _FIRST_NXD:
        return _version(
            f"the model was compiled by optimum-neuron {static.optimum_version or '0.2 or later'}, which "
            f"cannot be served with the installed {installed}: use {_IMAGE['nxd']}, or {again}"
        )
    return None


def _model_type(facts: ModelFacts, installed: str) -> ModelError | None:
    reason = unsupported(facts.model_type, installed)
    return None if reason is None else ModelError(reason, rule="unsupported_model")


def compiled_by(version: str) -> list[str]:
    """The families that this release of optimum-neuron compiles for text generation, sorted."""
    return sorted(name for name in COMPILED_SINCE if unsupported(name, version) is None)


def unsupported(model_type: str, installed: str) -> str | None:
    """Why the installed optimum-neuron has no graphs for the family, and what has; ``None`` if it has them.

    Of releases after those we know nothing is said.
    """
    have, spans = numbers(installed), COMPILED_SINCE.get(model_type)
    if have > _NEWEST_KNOWN:
        return None
    if spans is None:
        known = compiled_by(installed)
        return (
            f"model type {model_type!r} has no Neuron graphs in optimum-neuron {installed}, which knows "
            f"{', '.join(known)}: choose --backend cpu"
        )
    first, last = spans
    if have < first:
        return (
            f"model type {model_type!r} came to optimum-neuron with {_shown(first)}, and {installed} is "
            f"installed: use {_IMAGE['nxd']}, or --backend cpu"
        )
    if last is not None and have > last:
        return (
            f"model type {model_type!r} left optimum-neuron after {_shown(last)}, and {installed} is "
            f"installed: use {_IMAGE['legacy']}, or --backend cpu"
        )
    return None


def _optimum(static: StaticFacts, installed: str, again: str) -> ModelError | None:
    if static.generation == "legacy" or static.optimum_version in (None, installed):
        return None
    return _version(
        f"the model was compiled by optimum-neuron {static.optimum_version}, and {installed} is installed, "
        f"which loads only its own: install optimum-neuron {static.optimum_version}, or {again}"
    )


def _compiler(static: StaticFacts, installed: str | None, again: str) -> ModelError | None:
    compiled = static.compiler_version
    if compiled is None or installed is None:
        return None
    if static.generation == "legacy":
        if numbers(compiled) <= numbers(installed):
            return None
        what = "and an older one cannot run it"
    else:
        if _same_build(compiled, installed):
            return None
        what = "and only the same one can run it"
    return _version(
        f"the model was compiled by neuronx-cc {compiled}, {what}; {installed} is installed: use an image "
        f"with that version, or {again}"
    )


def _same_build(one: str, other: str) -> bool:
    """Equal in full; the part after ``+``, which names the build, counts where both have it."""
    if "+" in one and "+" in other:
        return one == other
    return one.partition("+")[0] == other.partition("+")[0]


def _target(static: StaticFacts, inventory: Inventory, model_id: str) -> ModelError | None:
    here = target_of(inventory.instance_type)
    if static.target is None or here is None:
        return None
    made_for = TARGETS.get(static.target, static.target)
    if made_for == here:
        return None
    family = (inventory.instance_type or "").partition(".")[0]
    names = " or ".join(name for name, target in TARGETS.items() if target == made_for) or made_for
    return ModelError(
        f"the model was compiled for {names}, and this is {inventory.instance_type}: serve it on one of "
        f"those, or compile it for this one: {export_command(static, model_id, instance_type=family)}",
        rule="neuron_target",
    )


def _cores(static: StaticFacts, inventory: Inventory, model_id: str) -> ModelError | None:
    if static.cores is None or inventory.cores is None or static.cores <= inventory.cores.count:
        return None
    have = inventory.cores.count
    return ModelError(
        f"the model was compiled for {static.cores} NeuronCores, and {have} can be used here (cores "
        f"{inventory.cores}): take an instance with more, set NEURON_RT_VISIBLE_CORES to more, or compile it "
        f"for these: {export_command(static, model_id, tensor_parallel_size=have)}",
        rule="neuron_cores",
    )


def _version(message: str) -> ModelError:
    return ModelError(message, rule="neuron_version")


def _shown(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
