"""The router program: HTTP in front, generators behind.

It listens first and loads afterwards, so that ``/health`` answers with the phase from the first second. What
is slow to import (FastAPI, gRPC, transformers) is therefore imported where it is used.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from types import FrameType
from typing import TYPE_CHECKING, TypeVar

from neuron_server import logs
from neuron_server.config import RouterConfig, from_argv
from neuron_server.errors import ConfigError, ModelError
from neuron_server.lifeline import ExitCode, die_with_parent
from neuron_server.tracing import NO_TRACER, Tracer, parse_endpoint

if TYPE_CHECKING:
    from neuron_server.router.replicas import ReplicaSet
    from neuron_server.router.service import GenerationService
    from neuron_server.text.chat import ChatTemplate
    from neuron_server.text.tokenizer import Tokenizer

logger = logging.getLogger("neuron_server.router")

T = TypeVar("T")

#: Connections the kernel keeps for the program while it is still importing.
_BACKLOG = 2048


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal; the exit status is an ``ExitCode`` (0 after a drain)."""
    signal.signal(signal.SIGTERM, _stop_before_start)
    config = from_argv(
        RouterConfig, sys.argv[1:] if argv is None else argv, prog="serve_router", description="HTTP router"
    )
    logs.setup(json_output=config.json_output)
    die_with_parent()
    os.environ.setdefault("USE_TORCH", "0")  # tokenizers need no torch, whose import costs seconds and memory
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    failed: ExitCode = ExitCode.USAGE
    try:
        if config.otlp_endpoint is not None:
            parse_endpoint(config.otlp_endpoint)
        failed = ExitCode.ADDRESS
        listener = listen(config.hostname, config.port)
    except ConfigError as error:
        logger.error("%s", error)
        return failed
    import uvloop

    with listener:
        return int(uvloop.run(serve(config, listener)))


def listen(hostname: str, port: int) -> socket.socket:
    """A listening socket; connections wait in it until the server runs. Raises ``ConfigError``."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            hostname, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ConfigError(f"--hostname {hostname!r} is no address to listen on: {error}") from error
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"--port {port} is taken on {hostname}: stop what listens there, or choose another port"
            ) from error
        raise ConfigError(f"--hostname {hostname!r} --port {port} cannot be listened on: {error}") from error
    return listener


async def serve(config: RouterConfig, listener: socket.socket) -> int:
    """Run everything on the current event loop; returns the exit status."""
    from neuron_server.router.app import build_app
    from neuron_server.router.http_span import HttpSpans
    from neuron_server.router.metrics import Metrics
    from neuron_server.router.replicas import ReplicaSet
    from neuron_server.router.server import Server
    from neuron_server.router.service import GenerationService
    from neuron_server.wire.client import GeneratorClient

    tracer = _tracer(config)
    metrics = Metrics(config)
    clients = [
        GeneratorClient(path, on_passes=metrics.batch.passes, on_lost=metrics.generator_losses.inc)
        for path in config.shard_uds_paths
    ]
    generators = ReplicaSet(clients, tracer=tracer, on_resubmit=metrics.resubmissions.inc)
    service = GenerationService(config, generators, metrics)
    app = build_app(service)
    server = Server(HttpSpans(app, tracer) if tracer.enabled else app)
    stop = asyncio.Event()
    _stop_on_signals(service, stop)
    await generators.start()
    opening = asyncio.create_task(_open(config, service, generators, server.listening))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        return await _until_stopped(config, service, opening, serving, stop)
    finally:
        opening.cancel()
        await generators.close()  # what is still running ends with an error that its client can read
        server.should_exit = True
        await asyncio.wait({serving})
        service.close()
        if tracer.enabled:
            await asyncio.to_thread(tracer.close)


def _tracer(config: RouterConfig) -> Tracer:
    if config.otlp_endpoint is None:
        return NO_TRACER
    from neuron_server import otlp

    return otlp.connect(config.otlp_endpoint, config.otlp_service_name, "neuron_server.router")


async def _open(
    config: RouterConfig, service: GenerationService, generators: ReplicaSet, listening: asyncio.Event
) -> None:
    """Load what text needs beside the generators' loading, and begin to serve when all are there."""

    def load_text() -> tuple[Tokenizer, ChatTemplate | None]:
        from neuron_server.text import chat_files, tokenizer

        loaded = tokenizer.load(config.tokenizer_path, trust_remote_code=config.trust_remote_code)
        template = chat_files.load(config.tokenizer_path, config_path=config.tokenizer_config_path)
        return loaded, template

    await listening.wait()  # the first answer to /health must not wait for imports that hold the interpreter
    loaded, template = await _in_daemon_thread(load_text)
    await generators.wait_ready()
    _look_for_garbage_in_what_is_new()
    service.open(loaded, template)
    logger.info("Connected")


def _look_for_garbage_in_what_is_new() -> None:
    """A collection stops every stream: one of all 350,000 objects that are here now takes half a second.

    The threshold is for bodies: with Python's own, 2 MB of empty lists took 270 ms to parse, most of it
    collections and none of it with anybody else running; now 70 ms (two busy cores).
    """
    gc.freeze()
    gc.set_threshold(10_000)


def _in_daemon_thread(work: Callable[[], T]) -> asyncio.Future[T]:
    """Like ``asyncio.to_thread``, but the program's end does not wait: Ctrl-C during loading is quick."""
    outcome: Future[T] = Future()
    outcome.set_running_or_notify_cancel()

    def run() -> None:
        try:
            outcome.set_result(work())
        except Exception as error:  # noqa: BLE001 - raised again where the outcome is awaited
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True, name="load-tokenizer").start()
    return asyncio.wrap_future(outcome)


async def _until_stopped(
    config: RouterConfig,
    service: GenerationService,
    opening: asyncio.Task[None],
    serving: asyncio.Task[None],
    stop: asyncio.Event,
) -> int:
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({opening, serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if opening.done():
        try:
            opening.result()
        except ModelError as error:
            logger.error("%s", error)
            return ExitCode.MODEL
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if serving.done():
        serving.result()
        return ExitCode.INTERNAL
    try:
        await asyncio.wait_for(service.idle(), config.graceful_termination_timeout)
    except asyncio.TimeoutError:
        logger.warning(
            "%d requests were not finished within --graceful-termination-timeout %g s and end now",
            service.in_flight,
            config.graceful_termination_timeout,
        )
    return ExitCode.OK


def _stop_on_signals(service: GenerationService, stop: asyncio.Event) -> None:
    """The first signal drains, the second ends the process on the spot."""

    def received(number: int) -> None:
        if stop.is_set():
            logger.warning("second signal: exiting at once")
            logging.shutdown()
            os._exit(128 + number)
        logger.info("signal received, starting graceful shutdown")
        service.drain()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, received, number)


def _stop_before_start(_: int, __: FrameType | None) -> None:
    """Before there is an event loop nothing is in flight.

    Not ``sys.exit``: the exception would rise inside whatever is being imported, which may catch it.
    """
    os._exit(ExitCode.OK)


if __name__ == "__main__":
    sys.exit(main())
