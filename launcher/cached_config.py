"""Which of the compiled configurations in a cache serves a plain model: an exact match on what the user set.

TGI's last releases take any entry that is at least as large as asked for, so that whoever asks for a batch of
4 gets 32 slots, and a step that is as slow (TGI's issues 3248 and 3299). Here what was set is what is served;
among the rest the preference is that of optimum-neuron's own server: more cores, then more slots, then longer
texts; and of two that differ in nothing else the one that samples on the host, where every parameter of the
API works. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from launcher.compiled import CAST, CORES
from launcher.neuron_checks import export_command
from launcher.parameters import Parameters
from neuron_server.compiled_model import TARGETS
from neuron_server.errors import ConfigError, ModelError
from neuron_server.json_object import DTYPES
from neuron_server.models import StaticFacts

_NEAREST = 3


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the user set (``None``: did not) and what the machine allows.

    ``max_input_tokens`` and ``batch_total_tokens`` (B x T) are met, not matched: the prompts must fit, the
    product must come out. ``cores``: those one replica may have. ``compiler``: the version that is installed.
    ``checkpoint_dtype``: the type of the weights, preferred where no other was asked for, because another one
    changes answers.
    """

    batch_size: int | None = None
    sequence_length: int | None = None
    tensor_parallel: int | None = None
    dtype: str | None = None
    on_device_sampling: bool | None = None
    max_input_tokens: int | None = None
    batch_total_tokens: int | None = None
    cores: int | None = None
    target: str | None = None
    compiler: str | None = None
    checkpoint_dtype: str | None = None

    @property
    def text(self) -> str:
        """The values that were set, by their flags; empty where none was."""
        flags = {
            "--max-batch-size": self.batch_size,
            "--max-total-tokens": self.sequence_length,
            "--num-shard": self.tensor_parallel,
            "--dtype": self.dtype,
            "--max-input-tokens": self.max_input_tokens,
            "--max-batch-total-tokens": self.batch_total_tokens,
        }
        words = [f"{flag} {value}" for flag, value in flags.items() if value is not None]
        if self.on_device_sampling is not None:
            words.append(f"sampling on the {'device' if self.on_device_sampling else 'host'}")
        return " ".join(words)


@dataclass(frozen=True, slots=True)
class Choice:
    """``chosen`` and the other entries that matched as well, best first."""

    chosen: StaticFacts
    alternatives: tuple[StaticFacts, ...] = ()


def wanted_of(
    parameters: Parameters,
    environ: Mapping[str, str],
    *,
    cores: int | None,
    target: str | None = None,
    compiler: str | None = None,
    checkpoint_dtype: str | None = None,
) -> Wanted:
    """The wish that the parameters make; ``cores`` of the machine are shared out to its replicas.

    ``HF_NUM_CORES`` and ``HF_AUTO_CAST_TYPE``, TGI's variables, count where no flag says otherwise. Raises
    ``ConfigError`` (rule ``neuron_environment``) when one of them is no such value.
    """

    def number(name: str) -> int | None:
        return parameters.integer(name) if parameters[name].by_user else None

    sampling = parameters["on_device_sampling"]
    replicas = max(1, parameters.counted("data_parallel_size"))
    return Wanted(
        batch_size=number("max_batch_size"),
        sequence_length=number("max_total_tokens"),
        tensor_parallel=number("num_shard") or _cores_of(environ) or _unsharded(parameters),
        dtype=parameters.text("dtype") or _cast_of(environ),
        on_device_sampling=cast("bool", sampling.value) if sampling.by_user else None,
        max_input_tokens=number("max_input_tokens"),
        batch_total_tokens=number("max_batch_total_tokens"),
        cores=None if cores is None else cores // replicas,
        target=target,
        compiler=compiler,
        checkpoint_dtype=checkpoint_dtype,
    )


def select(wanted: Wanted, entries: Sequence[StaticFacts], *, model_id: str = "MODEL") -> Choice:
    """The entry to serve; raises ``ModelError`` (rule ``no_cached_config``) with the nearest ones.

    ``entries`` are of this model and of the installed optimum-neuron; equal ones count once.
    """
    usable = [entry for entry in dict.fromkeys(entries) if not _obstacle(wanted, entry)]
    matching = [entry for entry in usable if not differences(wanted, entry)]
    if not matching:
        raise ModelError(_no_match(wanted, entries, model_id), rule="no_cached_config")
    best = sorted(matching, key=lambda entry: _preference(wanted, entry), reverse=True)
    return Choice(best[0], tuple(best[1:]))


def differences(wanted: Wanted, entry: StaticFacts) -> tuple[str, ...]:
    """The flags whose values the entry does not have."""
    pairs = {
        "--max-batch-size": (wanted.batch_size, entry.batch_size),
        "--max-total-tokens": (wanted.sequence_length, entry.sequence_length),
        "--num-shard": (wanted.tensor_parallel, entry.tensor_parallel),
        "--dtype": (wanted.dtype, entry.dtype),
        "--on-device-sampling": (wanted.on_device_sampling, entry.on_device_sampling),
        "--max-batch-total-tokens": (wanted.batch_total_tokens, entry.batch_size * entry.sequence_length),
    }
    found = [flag for flag, (want, have) in pairs.items() if want is not None and want != have]
    longest = min(entry.max_context_length, entry.sequence_length - 1)
    if wanted.max_input_tokens is not None and wanted.max_input_tokens > longest:
        found.append("--max-input-tokens")
    return tuple(found)


def _obstacle(wanted: Wanted, entry: StaticFacts) -> str | None:
    """Why the entry cannot run on this machine, whatever was asked for."""
    if entry.obstacles:
        return f"has {entry.obstacles[0]}"
    if wanted.cores is not None and (entry.cores or 1) > wanted.cores:
        return f"needs {entry.cores} cores of {wanted.cores}"
    if entry.target and wanted.target and TARGETS.get(entry.target, entry.target) != wanted.target:
        return f"is for {entry.target}"
    compilers = (entry.compiler_version, wanted.compiler)
    if all(compilers) and len({str(c).partition("+")[0] for c in compilers}) > 1:
        return f"is of neuronx-cc {entry.compiler_version}"
    return None


def _preference(wanted: Wanted, entry: StaticFacts) -> tuple[int, ...]:
    return (
        int(entry.dtype == wanted.checkpoint_dtype),
        entry.tensor_parallel or 1,
        entry.batch_size,
        entry.sequence_length,
        entry.max_context_length,
        int(not entry.on_device_sampling),
    )


def _no_match(wanted: Wanted, entries: Sequence[StaticFacts], model_id: str) -> str:
    known = sorted(dict.fromkeys(entries), key=lambda entry: _distance(wanted, entry))
    of = f" with {wanted.text}" if wanted.text else ""
    on = "" if wanted.cores is None else f" for {wanted.cores} core(s)"
    missing = f"the compile cache has no configuration of {model_id}{of}{on}"
    command = export_command(_missing(wanted, known), model_id)
    if not known:
        return f"{missing}, and none of it for the installed versions at all: compile one with {command}"
    nearest = "; ".join(_line(wanted, entry) for entry in known[:_NEAREST])
    return f"{missing}. Of the {len(known)} that it has the nearest are: {nearest}. Or compile it: {command}"


def _line(wanted: Wanted, entry: StaticFacts) -> str:
    obstacle = _obstacle(wanted, entry)
    return f"{entry.form}{f' ({obstacle})' if obstacle else ''}"


def _distance(wanted: Wanted, entry: StaticFacts) -> tuple[float, ...]:
    """How far from what was set: values that differ, then by what factors; what cannot run here is last."""
    numbers = (
        (wanted.batch_size, entry.batch_size),
        (wanted.sequence_length, entry.sequence_length),
        (wanted.tensor_parallel, entry.tensor_parallel),
    )
    factors = sum(abs(math.log2(want / have)) for want, have in numbers if want and have)
    if wanted.cores and entry.cores:
        factors += max(0.0, math.log2(entry.cores / wanted.cores))
    preference = (float(-value) for value in _preference(wanted, entry))
    differing = float(len(differences(wanted, entry)))
    return (float(_obstacle(wanted, entry) is not None), differing, factors, *preference)


def _missing(wanted: Wanted, known: Sequence[StaticFacts]) -> StaticFacts:
    """What was asked for, as something to compile; what was left open is as in the nearest entry."""
    near = known[0] if known else None
    sampling = wanted.on_device_sampling
    length = wanted.sequence_length or (near.sequence_length if near else 4096)
    return StaticFacts(
        batch_size=wanted.batch_size or (near.batch_size if near else 4),
        sequence_length=length,
        max_context_length=length,
        generation=near.generation if near else "nxd",
        continuous_batching=True,
        dtype=wanted.dtype or wanted.checkpoint_dtype,
        tensor_parallel=wanted.tensor_parallel or wanted.cores or 2,
        on_device_sampling=sampling if sampling is not None else near is not None and near.on_device_sampling,
    )


def _unsharded(parameters: Parameters) -> int | None:
    return 1 if parameters["sharded"].value == "false" else None


def _cores_of(environ: Mapping[str, str]) -> int | None:
    text = environ.get(CORES, "")
    if not text:
        return None
    if not text.isdecimal() or not 0 < int(text) < 10_000:
        raise ConfigError(f"{CORES} is {text!r}, but must be a number of cores", rule="neuron_environment")
    return int(text)


def _cast_of(environ: Mapping[str, str]) -> str | None:
    text = environ.get(CAST, "")
    if not text:
        return None
    dtype = DTYPES.get(text.removeprefix("torch.").lower())
    if dtype is None:
        raise ConfigError(
            f"{CAST} is {text!r}, but must be one of {', '.join(sorted(set(DTYPES.values())))}",
            rule="neuron_environment",
        )
    return dtype
