"""Where each replica is: its unix socket, its NeuronCores or its share of the processor."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from launcher.backend_choice import Execution
from launcher.device.cores import VISIBLE, CoreRange, replica_ranges, warn_degree
from launcher.host import Host
from launcher.parameters import Parameters
from neuron_server.errors import ConfigError
from neuron_server.socket_path import check_length

_NO_VARIABLES: Mapping[str, str] = MappingProxyType({})

#: A typing error rather than a wish: an inf2.48xlarge holds 24 replicas at most.
_MOST_REPLICAS = 256


@dataclass(frozen=True, slots=True)
class Sockets:
    """``paths`` and the flag that placed each, by rank. ``directory`` is to be made for those without."""

    paths: tuple[str, ...]
    flags: tuple[str, ...]
    directory: str | None


@dataclass(frozen=True, slots=True)
class Places:
    """By rank: the cores (none off Neuron), and what the generator's environment has of its own.

    ``threads``: most threads of a generator on the processor; ``None``: as many as it likes.
    """

    cores: tuple[CoreRange, ...]
    environments: tuple[Mapping[str, str], ...]
    threads: int | None = None
    warnings: tuple[str, ...] = ()


def replicas(parameters: Parameters) -> int:
    """``--data-parallel-size``; raises ``ConfigError`` for a number that no machine can serve."""
    given = parameters["data_parallel_size"]
    if not 1 <= given.count <= _MOST_REPLICAS:
        raise ConfigError(f"{given}, but must be from 1 to {_MOST_REPLICAS}: each one holds the whole model")
    return given.count


def places(execution: Execution, count: int, host: Host) -> Places:
    """Consecutive cores on Neuron, an equal share of the processor elsewhere.

    Raises ``ConfigError`` (rules ``no_neuron_device`` and ``neuron_cores``).
    """
    if not execution.on_neuron:
        return _on_processor(count, host.processors)
    degree = execution.tensor_parallel.count
    cores = replica_ranges(host.inventory.usable_cores(), degree, count)
    warning = warn_degree(degree, host.inventory.instance_type)
    # One replica gets its cores too: a process that names none reserves all that there are.
    return Places(
        cores=cores,
        environments=tuple(MappingProxyType({VISIBLE: str(own)}) for own in cores),
        warnings=() if warning is None else (warning,),
    )


def _on_processor(count: int, processors: int | None) -> Places:
    nothing = (_NO_VARIABLES,) * count
    if count == 1 or processors is None:
        return Places((), nothing)
    warnings: tuple[str, ...] = ()
    if count > processors:
        warnings = (
            f"--data-parallel-size is {count}, more than the {processors} processor core(s) here: the "
            "replicas slow each other down",
        )
    return Places((), nothing, max(1, processors // count), warnings)


def sockets(parameters: Parameters, count: int, private: str) -> Sockets:
    """The generators' sockets: where the user wants them, else in ``private``.

    ``--shard-uds-path`` is the base that ``-RANK`` is added to, ``--master-shard-uds-path`` the exact path of
    rank 0. Raises ``ConfigError`` (rule ``socket``).
    """
    master, base = parameters.text("master_shard_uds_path"), parameters.text("shard_uds_path")
    paths = [f"{base}-{rank}" if base else os.path.join(private, f"shard-{rank}") for rank in range(count)]
    flags = ["--shard-uds-path"] * count
    if master:
        paths[0], flags[0] = master, "--master-shard-uds-path"
        if master in paths[1:]:
            raise ConfigError(
                f"{parameters['master_shard_uds_path']}, but that is the socket of rank "
                f"{paths.index(master, 1)} too: choose another one",
                rule="socket",
            )
    for path, flag in zip(paths, flags, strict=True):
        check_length(path, flag)
    placed = base or (master and count == 1)
    return Sockets(tuple(paths), tuple(flags), None if placed else private)
