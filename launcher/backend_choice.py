"""Which backend runs the model, and what a compiled model leaves of the flags that choose how.

A model that was compiled for Neuron fixes its tensor-parallel degree, its type and its way to prefill: a flag
may repeat what the model says, and anything else is refused with both values. On a processor there is nothing
to split a model over, and the emulation of a device has no place on a device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast, get_args

from launcher.host import Host
from launcher.parameters import Given, Parameters, Source
from neuron_server.backend import PrefillMode
from neuron_server.config import BackendName, DType
from neuron_server.device_clock import FORM, parse_clock
from neuron_server.errors import ConfigError, ModelError
from neuron_server.models import ModelFacts, StaticFacts

#: What emulates a device on the processor; ``--help`` shows them together.
EMULATION = ("strict", "poison", "on_device_sampling", "simulated_clock")

_GENERATIONS = {"nxd": "by optimum-neuron 0.2 or later", "legacy": "by optimum-neuron before 0.2"}
_DTYPES = get_args(DType)


@dataclass(frozen=True, slots=True)
class Execution:
    """How a generator runs the model. ``tensor_parallel``: cores that one replica spans; 1 off Neuron."""

    backend: BackendName
    dtype: DType
    prefill_mode: PrefillMode
    tensor_parallel: Given

    @property
    def on_neuron(self) -> bool:
        """Whether NeuronCores compute."""
        return is_neuron(self.backend)


def is_neuron(backend: BackendName) -> bool:
    """Whether it is one of the two backends that need a device."""
    return backend in ("neuron", "neuron_legacy")


def requested_backend(parameters: Parameters, host: Host) -> BackendName:
    """The backend, as far as it can be told before the model is known.

    ``neuron`` may become ``neuron_legacy`` once the model is known. Raises ``ConfigError`` with the rules
    ``no_neuron_device``, ``neuron_cores``, ``emulation`` and ``num_shard``.
    """
    given, inventory = parameters["backend"], host.inventory
    backend = cast("BackendName", given.value)
    if given.value == "auto":
        backend = "neuron" if inventory.devices else "cpu"
    if is_neuron(backend):
        if not inventory.devices:
            raise ConfigError(f"{given}, but {_with_cpu(inventory.no_device())}", rule="no_neuron_device")
        inventory.usable_cores()
        _refuse_emulation(parameters, backend)
    else:
        _check_emulation(parameters, backend)
        _refuse_cores(parameters, backend)
    return backend


def execution(parameters: Parameters, facts: ModelFacts, backend: BackendName) -> Execution:
    """What the model and the flags say together; ``backend`` is ``requested_backend``'s.

    Raises ``ConfigError`` (rules ``not_a_neuron_model``, ``num_shard``, ``argument``) and ``ModelError``.
    """
    if is_neuron(backend):
        return _compiled_execution(parameters, facts)
    dtype = cast("DType", parameters.text("dtype") or "float32")
    # A CPU can insert as well as any device can, so that is what auto means there.
    prefill_mode: PrefillMode = "rebuild" if parameters.text("prefill_mode") == "rebuild" else "insert"
    one = Given(1, Source.DERIVED, "num_shard")
    shard = parameters["num_shard"]
    return Execution(backend, dtype, prefill_mode, shard if shard.by_user else one)


# -- on the processor ----------------------------------------------------------------------------------------


def _refuse_cores(parameters: Parameters, backend: BackendName) -> None:
    """TGI's shards are cores here, and a processor is not split into them."""
    num_shard, sharded = parameters["num_shard"], parameters["sharded"]
    given = next((g for g in (num_shard, sharded) if g.value not in (None, 1, "false")), None)
    if given is not None:
        raise ConfigError(
            f"{given}, but on --backend {backend} there are no NeuronCores to split the model over: set "
            "--num-shard 1, or leave it out (--data-parallel-size makes several replicas of the model)",
            rule="num_shard",
        )


def _check_emulation(parameters: Parameters, backend: BackendName) -> None:
    if backend == "fake" and parameters["strict"].value:
        raise ConfigError(
            f"{parameters['strict']}, but works only with --backend cpu: fake computes nothing",
            rule="emulation",
        )
    clock = parameters.text("simulated_clock")
    if clock is not None:
        try:
            parse_clock(clock)
        except ValueError as error:
            raise ConfigError(
                f"{parameters['simulated_clock']}, but {error}; it must be {FORM}", rule="emulation"
            ) from error


# -- on a device ---------------------------------------------------------------------------------------------


def _refuse_emulation(parameters: Parameters, backend: BackendName) -> None:
    given = next((parameters[name] for name in EMULATION if parameters[name].value), None)
    if given is not None:
        raise ConfigError(
            f"{given}, but emulates a device on the processor, and --backend {backend} runs on one: leave it "
            "out, or choose --backend cpu",
            rule="emulation",
        )


def _compiled_execution(parameters: Parameters, facts: ModelFacts) -> Execution:
    static, given = facts.static, parameters["backend"]
    if static is None:
        seen = given if given.by_user else f"{given} and a Neuron device is there"
        raise ConfigError(
            f"{seen}, but the model was not compiled for Neuron (it has no neuron_config.json): export it "
            "first (text-generation-server export), or choose --backend cpu",
            rule="not_a_neuron_model",
        )
    made_for: BackendName = "neuron_legacy" if static.generation == "legacy" else "neuron"
    if given.value == "neuron_legacy" and made_for != "neuron_legacy":
        raise ConfigError(
            f"{given}, but the model was compiled {_GENERATIONS[static.generation]}: set it to neuron, or "
            "leave it out",
            rule="backend_unavailable",
        )
    return Execution(
        backend=made_for,
        dtype=_compiled_dtype(parameters, facts, static),
        prefill_mode=_compiled_prefill_mode(parameters, static),
        tensor_parallel=_compiled_cores(parameters, static),
    )


def _compiled_dtype(parameters: Parameters, facts: ModelFacts, static: StaticFacts) -> DType:
    given, compiled = parameters["dtype"], static.dtype or facts.dtype or "float32"
    if compiled not in _DTYPES:
        raise ModelError(
            f"the model was compiled for {compiled!r}; only {', '.join(_DTYPES)} are served",
            rule="unsupported_model",
        )
    if given.value not in (None, compiled):
        raise ConfigError(f"{given}, {_compiled_for(compiled)}")
    return cast("DType", compiled)


def _compiled_prefill_mode(parameters: Parameters, static: StaticFacts) -> PrefillMode:
    given = parameters["prefill_mode"]
    compiled: PrefillMode = "insert" if static.continuous_batching else "rebuild"
    if given.value not in ("auto", compiled):
        with_or_without = "with" if static.continuous_batching else "without"
        raise ConfigError(
            f"{given}, but the model was compiled {with_or_without} continuous batching, so its KV cache "
            f"knows only {compiled}: set it to {compiled}, or leave it out"
        )
    return compiled


def _compiled_cores(parameters: Parameters, static: StaticFacts) -> Given:
    """The tensor-parallel degree: the model's; what it does not say is taken from the flag, else 1."""
    num_shard, sharded = parameters["num_shard"], parameters["sharded"]
    if static.cores is None:
        return num_shard if num_shard.value is not None else Given(1, Source.DERIVED, "num_shard")
    cores = f"{static.cores} core" + ("s" if static.cores > 1 else "")
    if num_shard.value not in (None, static.cores):
        raise ConfigError(f"{num_shard}, {_compiled_for(cores, static.cores)}", rule="num_shard")
    if num_shard.value is None and sharded.value not in (None, "true" if static.cores > 1 else "false"):
        raise ConfigError(
            f"{sharded}, but the model was compiled for {cores}: leave it out", rule="num_shard"
        )
    return num_shard if num_shard.by_user else Given(static.cores, Source.MODEL, "num_shard")


def _compiled_for(what: str, value: object = None) -> str:
    return f"but the model was compiled for {what}: set it to {value or what}, or leave it out"


def _with_cpu(text: str) -> str:
    """Advice that always names the way out that needs no device."""
    return text if "--backend cpu" in text else f"{text}; or choose --backend cpu"
