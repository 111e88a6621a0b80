"""The launch plan: from parameters and facts to everything that will be started. Pure, and complete.

Whatever can be known to be wrong is a ``ConfigError`` here, before a process starts or a weight is read.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from launcher.chat_template import tokenizer_config_path
from launcher.compiled import settle
from launcher.host import Host
from launcher.parameters import Given, Parameters, Source, shown
from launcher.static_values import StaticValues, static_values
from neuron_server.backend import PrefillMode
from neuron_server.config import OTLP_SERVICE_NAME, BackendName, DType, GeneratorConfig, RouterConfig
from neuron_server.device_clock import FORM, parse_clock
from neuron_server.errors import ConfigError
from neuron_server.models import ModelFacts, check_supported
from neuron_server.shape import StaticShape
from neuron_server.socket_path import check_length
from neuron_server.tracing import parse_endpoint

_ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}
_NO_VARIABLES: Mapping[str, str] = MappingProxyType({})
_EVERYWHERE = "0.0.0.0"  # noqa: S104 TGI's default


@dataclass(frozen=True, slots=True)
class Model:
    """The model to serve. ``model_id`` is what clients see; ``weight_bytes`` ``None`` means not looked at.

    ``pipeline_tag`` is what the hub says it is for; ``None`` for a directory.
    """

    model_id: str
    path: str
    facts: ModelFacts
    revision: str | None = None
    weight_bytes: int | None = None
    pipeline_tag: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table of values."""

    name: str
    value: str
    source: Source


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """Everything the supervisor needs.

    ``environments[rank]`` is what that generator's environment has besides the launcher's: its NeuronCores.
    ``socket_directory`` is to be made (mode 0700) and removed; ``None`` when the user placed the sockets, and
    then ``socket_flag`` is the flag to name when a socket cannot be used.
    """

    shape: StaticShape
    generators: tuple[GeneratorConfig, ...]
    environments: tuple[Mapping[str, str], ...]
    router: RouterConfig
    rows: tuple[Row, ...]
    warnings: tuple[str, ...]
    socket_directory: str | None
    socket_flag: str
    max_restarts: int

    def table(self) -> str:
        """The rows as aligned text, one per line."""
        widths = [max(len(getattr(r, column)) for r in self.rows) for column in ("name", "value")]
        lines = (f"  {r.name:<{widths[0]}}  {r.value:<{widths[1]}}  {r.source.value}" for r in self.rows)
        return "\n".join(line.rstrip() for line in lines)


def plan(
    parameters: Parameters,
    model: Model,
    host: Host,
    *,
    private_directory: str,
    environ: Mapping[str, str] = _NO_VARIABLES,
) -> LaunchPlan:
    """Decide everything; raises ``ConfigError`` or ``ModelError``, whose ``rule`` is in ``EXIT_CODES``.

    ``private_directory`` is the name to use for sockets that the user does not place; nothing is made here.
    Of ``environ`` only what belongs to no flag is looked at: ``compiled.CORES`` and ``compiled.CAST``.
    """
    backend = check_arguments(parameters, host)
    check_supported(model.facts, trust_remote_code=parameters.switch("trust_remote_code"))
    settled = settle(parameters, model.facts, environ)
    parameters = settled.parameters
    values = static_values(parameters, model.facts)
    hostname, hostname_warning = _hostname(parameters)
    sockets, directory, socket_flag = _sockets(parameters, private_directory)
    generators = tuple(_generator(parameters, model, values, backend, path) for path in sockets)
    concurrent = _max_concurrent_requests(parameters, values.shape)
    router = _router(parameters, model, values, hostname, sockets, concurrent)
    memory = _memory(model, values, generators[0], host) if backend == "cpu" else ()
    return LaunchPlan(
        shape=values.shape,
        generators=generators,
        environments=(_NO_VARIABLES,) * len(generators),
        router=router,
        rows=(*_rows(parameters, model, values, generators[0], router, concurrent), *memory),
        warnings=(*hostname_warning, *settled.warnings, *_warnings(parameters, model, values, concurrent)),
        socket_directory=directory,
        socket_flag=socket_flag,
        max_restarts=parameters.counted("max_restarts"),
    )


def check_arguments(parameters: Parameters, host: Host) -> BackendName:
    """Refuse what is wrong whatever the model is, before one is downloaded; the backend that will run."""
    parameters.refuse_refused()
    num_shard, sharded = parameters["num_shard"], parameters["sharded"]
    if num_shard.value == 0:
        raise ConfigError("`num_shard` cannot be < 1")
    if sharded.value == "true" and num_shard.value == 1:
        raise ConfigError("`sharded` is true but `num_shard` <= 1")
    if num_shard.value not in (None, 1) or sharded.value == "true":
        given = num_shard if num_shard.value not in (None, 1) else sharded
        raise ConfigError(
            f"{given}, but is refused: one generator process serves the whole static batch (on CPU a second "
            "one would only share the same cores); set --num-shard 1, or leave it out",
            rule="refused_flag",
        )
    if parameters["validation_workers"].value == 0:
        raise ConfigError("`validation_workers` must be > 0")
    for name in ("waiting_served_ratio", "max_prefill_stall"):
        if not 0 <= parameters.number(name) < float("inf"):
            raise ConfigError(f"{parameters[name]}, but must be a number from 0 on")
    if parameters["max_concurrent_requests"].value == 0:
        raise ConfigError(
            f"{parameters['max_concurrent_requests']}, but must be at least 1: at 0 every request gets 429",
            rule="max_concurrent_requests",
        )
    tokenizer_config_path(parameters)
    if (endpoint := parameters.text("otlp_endpoint")) is not None:
        parse_endpoint(endpoint)
    return _backend(parameters, host)


def _backend(parameters: Parameters, host: Host) -> BackendName:
    given = parameters["backend"]
    if given.value == "neuron" or (given.value == "auto" and host.neuron_devices):
        seen = (
            f"{host.neuron_devices} Neuron device(s) are in /dev"
            if host.neuron_devices
            else "none is in /dev"
        )
        raise ConfigError(
            f"{given}, but this release has no Neuron backend yet ({seen}): choose --backend cpu, which has "
            "the same static batch on the processor",
            rule="backend_unavailable",
        )
    backend: BackendName = "fake" if given.value == "fake" else "cpu"
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
    return backend


def _hostname(parameters: Parameters) -> tuple[str, tuple[str, ...]]:
    """The address to bind, and a warning where the given name is no address.

    TGI's rule is to listen everywhere then, because containers export HOSTNAME. ``localhost`` is the
    exception: whoever types it wants to be reached from this machine only.
    """
    given = parameters["hostname"]
    text = parameters.text("hostname") or _EVERYWHERE
    if text == "localhost":
        return "127.0.0.1", ()
    try:
        return str(ipaddress.ip_address(text)), ()
    except ValueError:
        return _EVERYWHERE, (f"Invalid hostname, defaulting to {_EVERYWHERE}: {given}, not an IP address",)


def _sockets(parameters: Parameters, private: str) -> tuple[tuple[str, ...], str | None, str]:
    """The generators' socket paths, the private directory they need, and the flag that places them."""
    master, base = parameters.text("master_shard_uds_path"), parameters.text("shard_uds_path")
    path = master or (f"{base}-0" if base else os.path.join(private, "shard-0"))
    flag = "--master-shard-uds-path" if master else "--shard-uds-path"
    check_length(path, flag)
    return (path,), None if master or base else private, flag


def _generator(
    parameters: Parameters, model: Model, values: StaticValues, backend: BackendName, uds_path: str
) -> GeneratorConfig:
    dtype: DType = "float32"
    for known in _ITEMSIZE:
        if parameters.text("dtype") == known:
            dtype = known  # type: ignore[assignment]  # the keys of _ITEMSIZE are DType's values
    # A CPU can insert as well as any device can, so that is what auto means there.
    prefill_mode: PrefillMode = "rebuild" if parameters.text("prefill_mode") == "rebuild" else "insert"
    return GeneratorConfig(
        model_path=model.path,
        uds_path=uds_path,
        batch_size=values.shape.batch_size,
        max_length=values.shape.max_length,
        max_prompt_tokens=values.prefill_width,
        backend=backend,
        dtype=dtype,
        prefill_mode=prefill_mode,
        strict=parameters.switch("strict"),
        poison=parameters.switch("poison"),
        simulated_clock=parameters.text("simulated_clock"),
        trust_remote_code=parameters.switch("trust_remote_code"),
        max_batch_prefill_tokens=values.max_batch_prefill_tokens.count,
        waiting_served_ratio=parameters.number("waiting_served_ratio"),
        max_waiting_tokens=parameters.counted("max_waiting_tokens"),
        max_prefill_stall=parameters.number("max_prefill_stall"),
        disable_grammar_support=parameters.switch("disable_grammar_support"),
        otlp_endpoint=parameters.text("otlp_endpoint"),
        otlp_service_name=parameters.text("otlp_service_name") or OTLP_SERVICE_NAME,
        json_output=True,  # the launcher says its lines again, in the form that was asked for
    )


def _router(
    parameters: Parameters,
    model: Model,
    values: StaticValues,
    hostname: str,
    sockets: tuple[str, ...],
    concurrent: Given,
) -> RouterConfig:
    return RouterConfig(
        model_id=model.model_id,
        tokenizer_path=model.path,
        shard_uds_paths=sockets,
        batch_size=values.shape.batch_size,
        max_input_tokens=values.max_input_tokens.count,
        max_total_tokens=values.max_total_tokens.count,
        hostname=hostname,
        port=parameters.counted("port"),
        max_concurrent_requests=concurrent.count,
        max_best_of=parameters.counted("max_best_of"),
        max_stop_sequences=parameters.counted("max_stop_sequences"),
        max_top_n_tokens=parameters.counted("max_top_n_tokens"),
        max_client_batch_size=parameters.counted("max_client_batch_size"),
        validation_workers=parameters.counted("validation_workers"),
        payload_limit=parameters.counted("payload_limit"),
        cors_allow_origin=parameters.texts("cors_allow_origin"),
        api_key=parameters.text("api_key"),
        trust_remote_code=parameters.switch("trust_remote_code"),
        revision=model.revision,
        pipeline_tag=model.pipeline_tag,
        tokenizer_config_path=tokenizer_config_path(parameters),
        disable_grammar_support=parameters.switch("disable_grammar_support"),
        otlp_endpoint=parameters.text("otlp_endpoint"),
        otlp_service_name=parameters.text("otlp_service_name") or OTLP_SERVICE_NAME,
        graceful_termination_timeout=float(parameters.counted("graceful_termination_timeout")),
        json_output=parameters.switch("json_output"),
    )


def _max_concurrent_requests(parameters: Parameters, shape: StaticShape) -> Given:
    """The flag, or a default that never leaves slots empty."""
    given = parameters["max_concurrent_requests"]
    if not given.by_user and given.count < shape.batch_size:
        return Given(shape.batch_size, Source.DERIVED, given.name)
    return given


def _warnings(
    parameters: Parameters, model: Model, values: StaticValues, concurrent: Given
) -> tuple[str, ...]:
    shape, facts = values.shape, model.facts
    found = list(parameters.without_effect())
    if concurrent.count < shape.batch_size:
        found.append(
            f"{concurrent}, less than the {shape.batch_size} slots of the batch: "
            f"{shape.batch_size - concurrent.count} of them can never be used"
        )
    if values.max_total_tokens.count < shape.max_length:
        found.append(
            f"{values.max_total_tokens}, less than the {shape.max_length} tokens of a slot that the model "
            "was compiled for; the memory of the rest is taken all the same"
        )
    if facts.static is not None:
        found.append(f"The model was compiled for Neuron; its shape {shape} is served on the CPU")
    if not facts.exact:
        found.append(f"The exactness of model type {facts.model_type!r} is not proven by our tests")
    if parameters["max_client_batch_size"].value == 0:
        found.append(f"{parameters['max_client_batch_size']}: every request to /v1/completions gets 422")
    if parameters.switch("trust_remote_code"):
        found.append("`trust_remote_code` is set: Python code of the model will be run")
    return tuple(found)


def _memory(model: Model, values: StaticValues, generator: GeneratorConfig, host: Host) -> tuple[Row, ...]:
    """Rows of the memory account; raises ``ConfigError`` (rule ``memory``) when it cannot come out even."""
    itemsize = _ITEMSIZE[generator.dtype]
    cache = model.facts.cache_bytes(values.shape, itemsize)
    stored = _ITEMSIZE.get(model.facts.dtype or generator.dtype, itemsize)
    weights = None if model.weight_bytes is None else model.weight_bytes * itemsize // stored
    needed = (cache or 0) + (weights or 0)
    if host.available_bytes is not None and needed > host.available_bytes:
        raise ConfigError(
            f"--max-batch-size {values.shape.batch_size} x --max-total-tokens {values.shape.max_length} in "
            f"--dtype {generator.dtype} need {_size(needed)} (weights {_size(weights)}, KV cache "
            f"{_size(cache)}), but {_size(host.available_bytes)} of memory are available: choose smaller ones"
            + (", or --dtype bfloat16" if itemsize > 2 else ""),
            rule="memory",
        )
    sizes = {"weights in memory": weights, "KV cache": cache, "memory available": host.available_bytes}
    return tuple(Row(name, _size(size), Source.DERIVED) for name, size in sizes.items())


def _rows(
    parameters: Parameters,
    model: Model,
    values: StaticValues,
    generator: GeneratorConfig,
    router: RouterConfig,
    concurrent: Given,
) -> tuple[Row, ...]:
    def chosen(name: str, value: str) -> Row:
        source = parameters[name].source
        derived = source is Source.DEFAULT and parameters[name].value in (None, "auto")
        return Row(name, value, Source.DERIVED if derived else source)

    static = (
        *(values.max_batch_size, values.max_total_tokens, values.max_input_tokens),
        *(values.max_batch_prefill_tokens, values.max_batch_total_tokens, concurrent),
    )
    cores = model.facts.static.cores if model.facts.static else None
    scheduling = ("max_waiting_tokens", "waiting_served_ratio", "max_prefill_stall")
    return (
        Row("model_id", model.model_id, parameters["model_id"].source),
        chosen("backend", generator.backend),
        chosen("dtype", generator.dtype),
        chosen("prefill_mode", generator.prefill_mode),
        *(Row(_new_name(given.name), shown(given.value), given.source) for given in static),
        *((Row("cores", str(cores), Source.MODEL),) if cores else ()),
        *(chosen(name, shown(parameters[name].value)) for name in scheduling),
        chosen("hostname", router.hostname),
        chosen("port", str(router.port)),
    )


def _new_name(name: str) -> str:
    return "max_input_tokens" if name == "max_input_length" else name


def _size(count: int | None) -> str:
    """Bytes for people: ``1.5 GiB``; ``unknown`` when the files do not say."""
    if count is None:
        return "unknown"
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"
