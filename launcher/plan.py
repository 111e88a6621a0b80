"""The launch plan: from parameters and facts to everything that will be started. Pure, and complete.

Whatever can be known to be wrong is a ``ConfigError`` here, before a process starts or a weight is read.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from launcher import memory_account, placement
from launcher.backend_choice import Execution, execution, requested_backend
from launcher.chat_template import tokenizer_config_path
from launcher.compiled import settle
from launcher.host import Host
from launcher.memory_account import Account, Need
from launcher.parameters import Given, Parameters, Source, shown
from launcher.placement import Places, Sockets
from launcher.static_values import StaticValues, static_values
from neuron_server.config import OTLP_SERVICE_NAME, BackendName, GeneratorConfig, RouterConfig
from neuron_server.errors import ConfigError
from neuron_server.models import ModelFacts, check_supported
from neuron_server.shape import StaticShape
from neuron_server.tracing import parse_endpoint

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
    ``socket_directory`` is to be made (mode 0700) and removed; ``None`` when the user placed all sockets.
    ``socket_flags[rank]`` is the flag to name when a socket cannot be used.
    """

    shape: StaticShape
    generators: tuple[GeneratorConfig, ...]
    environments: tuple[Mapping[str, str], ...]
    router: RouterConfig
    rows: tuple[Row, ...]
    warnings: tuple[str, ...]
    socket_directory: str | None
    socket_flags: tuple[str, ...]
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
    chosen = execution(parameters, model.facts, backend)
    values = static_values(parameters, model.facts)
    hostname, hostname_warning = listen_address(parameters)
    count = placement.replicas(parameters)
    places = placement.places(chosen, count, host)
    sockets = placement.sockets(parameters, count, private_directory)
    generators = tuple(
        _generator(parameters, model, values, chosen, places, uds_path) for uds_path in sockets.paths
    )
    concurrent = _max_concurrent_requests(parameters, values.shape.batch_size * count)
    router = _router(parameters, model, values, hostname, sockets, concurrent)
    memory = _memory(model, values, chosen, count, host)
    return LaunchPlan(
        shape=values.shape,
        generators=generators,
        environments=places.environments,
        router=router,
        rows=(
            *_rows(parameters, model, values, chosen, router, concurrent),
            *(Row(f"cores of replica {n}", str(own), Source.DERIVED) for n, own in enumerate(places.cores)),
            *(Row(name, memory_account.size(size), Source.DERIVED) for name, size in memory.sizes.items()),
        ),
        warnings=(
            *(*hostname_warning, *settled.warnings, *places.warnings, *memory.warnings),
            *_warnings(parameters, model, values, chosen, concurrent),
        ),
        socket_directory=sockets.directory,
        socket_flags=sockets.flags,
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
    placement.replicas(parameters)
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
    return requested_backend(parameters, host)


def listen_address(parameters: Parameters) -> tuple[str, tuple[str, ...]]:
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


def _generator(
    parameters: Parameters,
    model: Model,
    values: StaticValues,
    chosen: Execution,
    places: Places,
    uds_path: str,
) -> GeneratorConfig:
    return GeneratorConfig(
        model_path=model.path,
        uds_path=uds_path,
        batch_size=values.shape.batch_size,
        max_length=values.shape.max_length,
        max_prompt_tokens=values.prefill_width,
        backend=chosen.backend,
        dtype=chosen.dtype,
        prefill_mode=chosen.prefill_mode,
        strict=parameters.switch("strict"),
        poison=parameters.switch("poison"),
        on_device_sampling=parameters.switch("on_device_sampling"),
        threads=places.threads,
        simulated_clock=parameters.text("simulated_clock"),
        trust_remote_code=parameters.switch("trust_remote_code"),
        max_batch_prefill_tokens=values.max_batch_prefill_tokens.count,
        waiting_served_ratio=parameters.number("waiting_served_ratio"),
        max_waiting_tokens=parameters.counted("max_waiting_tokens"),
        max_prefill_stall=parameters.number("max_prefill_stall"),
        approximate_top_p=parameters.switch("approximate_top_p"),
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
    sockets: Sockets,
    concurrent: Given,
) -> RouterConfig:
    return RouterConfig(
        model_id=model.model_id,
        tokenizer_path=model.path,
        shard_uds_paths=sockets.paths,
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
        approximate_top_p=parameters.switch("approximate_top_p"),
        disable_grammar_support=parameters.switch("disable_grammar_support"),
        otlp_endpoint=parameters.text("otlp_endpoint"),
        otlp_service_name=parameters.text("otlp_service_name") or OTLP_SERVICE_NAME,
        graceful_termination_timeout=float(parameters.counted("graceful_termination_timeout")),
        json_output=parameters.switch("json_output"),
    )


def _max_concurrent_requests(parameters: Parameters, slots: int) -> Given:
    """The flag, or a default that never leaves slots of any replica empty."""
    given = parameters["max_concurrent_requests"]
    if not given.by_user and given.count < slots:
        return Given(slots, Source.DERIVED, given.name)
    return given


def _warnings(
    parameters: Parameters, model: Model, values: StaticValues, chosen: Execution, concurrent: Given
) -> tuple[str, ...]:
    shape, facts = values.shape, model.facts
    found = list(parameters.without_effect())
    slots = shape.batch_size * parameters.counted("data_parallel_size")
    if concurrent.count < slots:
        whose = "the batch" if slots == shape.batch_size else "all replicas"
        found.append(
            f"{concurrent}, less than the {slots} slots of {whose}: "
            f"{slots - concurrent.count} of them can never be used"
        )
    if values.max_total_tokens.count < shape.max_length:
        found.append(
            f"{values.max_total_tokens}, less than the {shape.max_length} tokens of a slot that the model "
            "was compiled for; the memory of the rest is taken all the same"
        )
    if facts.static is not None and not chosen.on_neuron:
        found.append(f"The model was compiled for Neuron; its shape {shape} is served on the CPU")
    if not facts.exact:
        found.append(f"The exactness of model type {facts.model_type!r} is not proven by our tests")
    if parameters["max_client_batch_size"].value == 0:
        found.append(f"{parameters['max_client_batch_size']}: every request to /v1/completions gets 422")
    if parameters.switch("trust_remote_code"):
        found.append("`trust_remote_code` is set: Python code of the model will be run")
    return tuple(found)


def _memory(model: Model, values: StaticValues, chosen: Execution, count: int, host: Host) -> Account:
    need = Need(model.facts, values.shape, chosen.dtype, model.weight_bytes, count)
    if chosen.on_neuron:
        return memory_account.on_cores(need, chosen.tensor_parallel.count, host)
    return memory_account.on_processor(need, host) if chosen.backend == "cpu" else Account()


def _rows(
    parameters: Parameters,
    model: Model,
    values: StaticValues,
    execution: Execution,
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
    # On a processor the cores of a compiled model are only told of.
    static_cores = model.facts.static.cores if model.facts.static else None
    cores, degree = (None, execution.tensor_parallel) if execution.on_neuron else (static_cores, None)
    scheduling = ("max_waiting_tokens", "waiting_served_ratio", "max_prefill_stall")
    return (
        Row("model_id", model.model_id, parameters["model_id"].source),
        chosen("backend", execution.backend),
        chosen("dtype", execution.dtype),
        chosen("prefill_mode", execution.prefill_mode),
        *((Row("num_shard", shown(degree.value), degree.source),) if degree else ()),
        chosen("data_parallel_size", str(len(router.shard_uds_paths))),
        *(Row(_new_name(given.name), shown(given.value), given.source) for given in static),
        *((Row("cores", str(cores), Source.MODEL),) if cores else ()),
        *(chosen(name, shown(parameters[name].value)) for name in scheduling),
        chosen("hostname", router.hostname),
        chosen("port", str(router.port)),
    )


def _new_name(name: str) -> str:
    return "max_input_tokens" if name == "max_input_length" else name
