"""The generator: one model on one static batch, served over gRPC on a unix socket.

Started by the launcher, or by hand: ``python -m neuron_server.serve_generator --help``. ``Health`` answers
from the first moment, also while the model loads. How it ends is its exit code: ``lifeline.ExitCode``.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from neuron_server import logs
from neuron_server.backends import load_backend
from neuron_server.config import GeneratorConfig, from_argv
from neuron_server.engine.loop import EngineLoop
from neuron_server.engine.schedule import Policy
from neuron_server.errors import ConfigError, DeviceFailedError, ModelError, NeuronTgiError
from neuron_server.lifeline import ExitCode, die_with_parent
from neuron_server.session import SessionSource
from neuron_server.socket_path import check_length, clear_stale
from neuron_server.wire.service import serving

if TYPE_CHECKING:
    from neuron_server.text.grammar import GrammarCompiler

log = logging.getLogger("neuron_server.serve_generator")  # not "__main__"

#: The compute thread gets so long to end; a load or a long prefill is left behind after it.
STOP_S = 2.0


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Serve until SIGTERM or SIGINT (exit code 0), or until the model or the device fails."""
    die_with_parent()
    config = from_argv(
        GeneratorConfig,
        sys.argv[1:] if argv is None else argv,
        prog="python -m neuron_server.serve_generator",
        description="One model on one static batch, over gRPC on a unix socket.",
    )
    logs.setup(json_output=config.json_output)
    code = asyncio.run(serve(config))
    logging.shutdown()
    # Not sys.exit: the compute thread may be deep in a load or a prefill, and nothing is left to clean up.
    os._exit(code)


async def serve(config: GeneratorConfig) -> ExitCode:
    """Serve one model until a signal or a failure; what was the matter is logged."""
    try:
        check_length(config.uds_path, "--uds-path")
        clear_stale(config.uds_path, "--uds-path")
        failure = await _serve_traced(config)
    except ConfigError as error:
        failure = error
    if failure is None:
        return ExitCode.OK
    if isinstance(failure, NeuronTgiError):
        log.error("%s", failure)
    else:
        log.error("the generator failed", exc_info=failure)
    return exit_code(failure)


async def _serve_traced(config: GeneratorConfig) -> BaseException | None:
    """What ended it; ``None`` for a signal. The last spans get a moment to leave."""
    if config.otlp_endpoint is None:
        return await _serve_until_the_end(config, lambda engine: engine)
    from neuron_server import otlp
    from neuron_server.wire.spans import TracedSource

    tracer = otlp.connect(config.otlp_endpoint, config.otlp_service_name, "neuron_server.generator")
    try:
        return await _serve_until_the_end(config, lambda engine: TracedSource(engine, tracer))
    finally:
        await asyncio.to_thread(tracer.close)


async def _serve_until_the_end(
    config: GeneratorConfig, seen: Callable[[EngineLoop], SessionSource]
) -> BaseException | None:
    """See above; ``seen`` is the engine as the wire sees it."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[BaseException | None] = loop.create_future()

    def end(failure: BaseException | None) -> None:
        if not ended.done():
            ended.set_result(failure)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end, None)
    grammars = _grammars(config)
    engine = EngineLoop(
        lambda: load_backend(config),
        _policy(config),
        compile=grammars,
        on_fatal=end,
        approximate_top_p=config.approximate_top_p,
    )
    async with serving(seen(engine), config.uds_path) as stop_calls:
        engine.start()
        announcing = asyncio.create_task(_announce(engine))
        failure = await ended
        announcing.cancel()
        if failure is None:
            await stop_calls(0.0)  # a router finds its requests lost, and resumes them elsewhere
        await engine.close(STOP_S)
        if grammars is not None:
            await grammars.close()
    return failure


def _grammars(config: GeneratorConfig) -> GrammarCompiler | None:
    """The compiler of grammars; ``None``: they are refused.

    It reads the vocabulary while the model loads, when nobody minds that this holds up other threads. Models
    without a ``tokenizer.json`` need transformers for it, which must not be imported twice at the same time:
    theirs waits for the first grammar.
    """
    if config.disable_grammar_support:
        return None
    from neuron_server.text.grammar import GrammarCompiler, load_vocabulary

    directory = Path(config.model_path)
    grammars = GrammarCompiler(lambda: load_vocabulary(directory, trust_remote_code=config.trust_remote_code))
    if (directory / "tokenizer.json").is_file():
        grammars.prepare()
    return grammars


def _policy(config: GeneratorConfig) -> Policy:
    return Policy(
        max_batch_prefill_tokens=config.max_batch_prefill_tokens,
        waiting_served_ratio=config.waiting_served_ratio,
        max_waiting_tokens=config.max_waiting_tokens,
        max_prefill_stall_s=config.max_prefill_stall,
    )


async def _announce(engine: EngineLoop) -> None:
    try:
        await engine.ready()
    except BaseException:  # noqa: BLE001 whatever it is, on_fatal gets it too
        return
    gc.freeze()  # the imports and the model stay: looking for garbage there would stop a step for 0.4 s
    info = engine.info
    log.info("ready: %s slots on %s, %s, %s", info.shape, info.device, info.dtype, info.prefill_mode)


def exit_code(failure: BaseException) -> ExitCode:
    """What the launcher is told."""
    if isinstance(failure, ConfigError):
        return ExitCode.USAGE
    if isinstance(failure, ModelError):
        return ExitCode.MODEL
    if isinstance(failure, DeviceFailedError):
        return ExitCode.DEVICE
    return ExitCode.INTERNAL


if __name__ == "__main__":
    main()
