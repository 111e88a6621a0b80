"""Where the generators' unix sockets and the router's port are, and whether they are free."""

from __future__ import annotations

import errno
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from secrets import token_hex

from launcher.host import port_holder
from launcher.plan import LaunchPlan
from neuron_server.errors import ConfigError
from neuron_server.socket_path import clear_stale


def private_directory_name() -> str:
    """A name nobody else uses, short enough for a unix socket inside; nothing is created."""
    name = f"neuronx-tgi-{os.getpid()}-{token_hex(4)}"
    path = os.path.join(tempfile.gettempdir(), name)
    return path if len(path) < 80 else os.path.join("/tmp", name)  # noqa: S108 created with mode 0700


@contextmanager
def socket_places(plan: LaunchPlan) -> Iterator[None]:
    """Make the private directory, check the places that the user named; remove everything at the end.

    Raises ``ConfigError`` (rule ``socket``).
    """
    sockets = tuple(generator.uds_path for generator in plan.generators)
    for path, flag in zip(sockets, plan.socket_flags, strict=True):
        if os.path.dirname(path) != plan.socket_directory:
            clear_stale(path, flag)
    if plan.socket_directory is not None:
        try:
            os.mkdir(plan.socket_directory, mode=0o700)
        except OSError as error:
            raise ConfigError(
                f"the directory for the sockets, {plan.socket_directory}, cannot be made ({error.strerror}): "
                "set TMPDIR, or place the sockets with --shard-uds-path",
                rule="socket",
            ) from error
    try:
        yield
    finally:
        for path in sockets:
            with suppress(OSError):
                os.unlink(path)
        if plan.socket_directory is not None:
            with suppress(OSError):
                os.rmdir(plan.socket_directory)


def free_port(hostname: str, port: int, flag: str) -> int:
    """``port`` if it can be listened on, or a free one for 0; ``flag`` says where the port came from.

    Raises ``ConfigError``: rule ``port_in_use``, or ``address`` when the address itself cannot be used.
    """
    family = socket.AF_INET6 if ":" in hostname else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((hostname, port))
            # Two sockets may share an address until one of them listens.
            probe.listen(1)
        except OSError as error:
            raise _cannot_listen(hostname, port, flag, error) from error
        return int(probe.getsockname()[1])


def _cannot_listen(hostname: str, port: int, flag: str, error: OSError) -> ConfigError:
    if error.errno == errno.EADDRINUSE:
        holder = port_holder(port) or "another process"
        return ConfigError(
            f"{flag}, but {holder} listens there already: stop it, or choose another --port",
            rule="port_in_use",
        )
    if error.errno == errno.EACCES:
        return ConfigError(
            f"{flag}, but this user may not listen on it: choose a --port from 1024 on", rule="address"
        )
    return ConfigError(
        f"--hostname is {hostname}, but this machine cannot listen there ({error.strerror}): "
        "choose one of its own addresses, or 0.0.0.0",
        rule="address",
    )
