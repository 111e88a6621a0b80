"""``text-generation-server export``: compile a model for Neuron, with or without a device."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from argparse import BooleanOptionalAction
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from launcher.cached_config import Wanted, differences
from launcher.device import inventory
from launcher.device.inventory import Inventory
from launcher.device.rooted import machine_root
from launcher.device.stack import installed
from launcher.device.versions import numbers
from launcher.download import Fetched, fetch, is_local
from launcher.environment import hub_environment
from launcher.export_program import Runner, Source, cached, export
from launcher.log_lines import log_entry
from launcher.neuron_checks import LAST_LEGACY
from launcher.parameters import Parameters
from launcher.stopping import Stopping
from neuron_server import logs
from neuron_server.compiled_model import TARGETS
from neuron_server.errors import ConfigError, ModelError
from neuron_server.models import ModelFacts, StaticFacts, check_supported, read_model

DTYPES = ("float32", "bfloat16", "float16")
#: optimum-neuron's own defaults, where it has them for every release: one slot, and no more than this.
DEFAULT_LENGTH = 4096
INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What was asked for; ``None`` is derived in ``form``."""

    model_id: str
    output: str
    revision: str | None
    batch_size: int
    sequence_length: int | None
    max_context_length: int | None
    tensor_parallel_size: int | None
    dtype: str | None
    on_device_sampling: bool | None
    instance_type: str | None
    trust_remote_code: bool
    json_output: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("model_id", help="hub id, or a local directory")
    parser.add_argument("--output", required=True, help="directory to make; must not exist, or be empty")
    parser.add_argument("--revision", help="branch, tag or commit of a hub model; default main")
    parser.add_argument("--batch-size", type=int, default=1, help="slots of the static batch; default 1")
    parser.add_argument(
        "--sequence-length", type=int,
        help=f"tokens of a slot, prompt plus new; default {DEFAULT_LENGTH}, or the positions of the model",
    )  # fmt: skip
    parser.add_argument("--max-context-length", type=int, help="longest prompt; default the sequence length")
    parser.add_argument(
        "--tensor-parallel-size", "--num-shard", type=int,
        help="NeuronCores to spread the model over; default all of this machine, and needed without a device",
    )  # fmt: skip
    parser.add_argument("--dtype", choices=DTYPES, help="type of weights and KV cache; default the model's")
    parser.add_argument(
        "--on-device-sampling", action=BooleanOptionalAction,
        help="let the device choose the tokens: faster, without logprobs, seeds, penalties and grammars; "
        "default is what optimum-neuron does for the model",
    )  # fmt: skip
    parser.add_argument(
        "--instance-type", choices=sorted(TARGETS), help="what it shall run on; needed without a device"
    )
    parser.add_argument("--trust-remote-code", action="store_true", help="run the model's own code")
    parser.add_argument("--logger-level", default="INFO", help="default INFO")
    parser.add_argument("--json-output", action=BooleanOptionalAction, help="log one JSON object per line")


def parse_options(args: argparse.Namespace) -> ExportOptions:
    """The parsed arguments as options."""
    return ExportOptions(
        model_id=args.model_id,
        output=args.output,
        revision=args.revision,
        batch_size=args.batch_size,
        sequence_length=args.sequence_length,
        max_context_length=args.max_context_length,
        tensor_parallel_size=args.tensor_parallel_size,
        dtype=args.dtype,
        on_device_sampling=args.on_device_sampling,
        instance_type=args.instance_type,
        trust_remote_code=bool(args.trust_remote_code),
        json_output=bool(args.json_output),
    )


def form(options: ExportOptions, facts: ModelFacts, machine: Inventory) -> StaticFacts:
    """What will be compiled; raises ``ConfigError`` (rule ``argument``) naming the flag that cannot be."""
    positions = facts.max_positions
    length = options.sequence_length
    if length is None:
        length = min(positions or DEFAULT_LENGTH, DEFAULT_LENGTH)
    cores = options.tensor_parallel_size
    if cores is None:
        if machine.cores is None:
            raise ConfigError(
                "--tensor-parallel-size is unset, and there is no Neuron device here whose cores could be "
                "its default: set it to the cores that one replica shall have (2 on inf2.xlarge and "
                "inf2.8xlarge, up to 24 on inf2.48xlarge)"
            )
        cores = machine.cores.count
    context = options.max_context_length if options.max_context_length is not None else length
    _least("--batch-size", options.batch_size, 1)
    _least("--sequence-length", length, 2)
    _least("--tensor-parallel-size", cores, 1)
    _least("--max-context-length", context, 1)
    if positions is not None and length > positions:
        raise ConfigError(
            f"--sequence-length is {length}, but the model has {positions} positions: set it to that or less",
            rule="max_positions",
        )
    if context > length:
        raise ConfigError(
            f"--max-context-length is {context}, but must be at most --sequence-length ({length})"
        )
    if not machine.devices and options.instance_type is None:
        raise ConfigError(
            "--instance-type is unset, and there is no Neuron device here to compile for: set it to "
            f"{', '.join(sorted(TARGETS))} (inf2 for Inferentia2)",
            rule="no_neuron_device",
        )
    return StaticFacts(
        batch_size=options.batch_size,
        sequence_length=length,
        max_context_length=context,
        generation="nxd",
        continuous_batching=options.batch_size > 1,
        cores=cores,
        tensor_parallel=cores,
        dtype=options.dtype or (facts.dtype if facts.dtype in DTYPES else "float32"),
        on_device_sampling=bool(options.on_device_sampling),
    )


def _least(flag: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"{flag} is {value}, but must be at least {least}")


def run(options: ExportOptions, environ: Mapping[str, str]) -> int:
    """Do it; the exit status. Raises ``ConfigError``, ``ModelError`` and ``LaunchError``."""
    logs.setup(json_output=options.json_output)
    return asyncio.run(_run(options, environ))


async def _run(options: ExportOptions, environ: Mapping[str, str]) -> int:
    machine = inventory.inspect(machine_root(environ), environ)
    stopping = Stopping()
    stopping.listen()
    env = {**hub_environment(environ), "PYTHONUNBUFFERED": "1"}
    runner = Runner(env, Relay(json_output=options.json_output), stopping)
    stack = installed(machine_root(environ), environ)
    legacy = stack.optimum_neuron is not None and numbers(stack.optimum_neuron) <= LAST_LEGACY
    # transformers-neuronx compiles with the weights in hand; later releases need only the configuration.
    fetched = await _fetched(options, runner, config_only=not legacy)
    if fetched is None:
        return INTERRUPTED
    facts = read_model(fetched.path)
    check_supported(facts, trust_remote_code=options.trust_remote_code)
    if facts.static is not None:
        raise ModelError(
            f"{options.model_id} is compiled already ({facts.static.form}): export the model it was made of"
            + (f", {facts.static.checkpoint_id}" if facts.static.checkpoint_id else ""),
            rule="export_failed",
        )
    static = form(options, facts, machine)
    _check_output(options.output)
    local = fetched.revision is None
    source = Source(
        path=_resolved(fetched.path),
        model_id=None if local else options.model_id,
        revision=fetched.revision,
        trust_remote_code=options.trust_remote_code,
    )
    await _tell_cached(runner, source, static, options)
    if stopping.requested.is_set():
        return INTERRUPTED
    made = await export(
        runner,
        source,
        static,
        _resolved(options.output),
        instance_type=options.instance_type,
        sampling=options.on_device_sampling,
    )
    return INTERRUPTED if made is None else 0


async def _fetched(options: ExportOptions, runner: Runner, *, config_only: bool) -> Fetched | None:
    if is_local(options.model_id):
        return Fetched(options.model_id, None)
    parameters = Parameters.of(revision=options.revision, trust_remote_code=options.trust_remote_code)
    return await fetch(
        options.model_id, parameters, runner.env, runner.forward, runner.stopping, config_only=config_only
    )


async def _tell_cached(runner: Runner, source: Source, static: StaticFacts, options: ExportOptions) -> None:
    """Say beforehand whether this will take seconds or an hour; nothing depends on it."""
    try:
        entries = await cached(runner, source)
    except ModelError as error:
        if error.rule == "backend_unavailable":
            raise
        sys.stderr.write(f"Whether this is cached is not known: {error}\n")
        return
    wanted = Wanted(
        batch_size=static.batch_size,
        sequence_length=static.sequence_length,
        tensor_parallel=static.tensor_parallel,
        dtype=static.dtype,
        on_device_sampling=options.on_device_sampling,
    )
    if entries and any(not differences(wanted, entry) for entry in entries):
        sys.stderr.write(f"The compile cache has the graphs of {static.form}\n")
    else:
        sys.stderr.write("The compile cache does not have these graphs: the compiler will run\n")


def _check_output(output: str) -> None:
    """Refuse what is there, before hours are spent on it."""
    path = Path(output)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"--output is {output}, which exists and is not an empty directory: name another")


def _resolved(path: str) -> Path:
    return Path(os.path.realpath(path))


class Relay:
    """Says the programs' lines: those of their log in the form that was asked for, others as they are."""

    def __init__(self, *, json_output: bool) -> None:
        self._json_output = json_output

    def __call__(self, name: str, line: bytes) -> None:  # noqa: ARG002 a Forward
        entry = None if self._json_output else log_entry(line)
        text = line.decode(errors="replace") if entry is None else entry[1] + "\n"
        sys.stderr.write(text)
        sys.stderr.flush()
