"""The generator as a process: it answers from the first moment, and ends promptly, cleanly and tellingly."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from neuron_server.config import GeneratorConfig, to_argv
from neuron_server.errors import (
    ConfigError,
    DeviceFailedError,
    GenerationError,
    GeneratorLostError,
    ModelError,
    SlotBusyError,
)
from neuron_server.lifeline import ExitCode
from neuron_server.request import GenerationRequest
from neuron_server.serve_generator import exit_code, serve
from neuron_server.session import Phase, Status
from neuron_server.wire.client import GeneratorClient

ROOT = Path(__file__).parents[1]

#: A generator whose backend is a stand-in with a fault: ``load`` hangs, a prefill hangs, or the device fails.
PROGRAM = """
import gc, sys, time
import numpy as np
from neuron_server import serve_generator
from neuron_server.backend import BackendInfo, Output
from neuron_server.errors import DeviceFailedError
from neuron_server.shape import StaticShape

fault = sys.argv[1]

class Backend:
    info = BackendInfo(StaticShape(2, 64), 32, 16, device="stand-in")
    steps = 0

    def out(self, rows):
        time.sleep(0.002)
        return Output(np.zeros((len(rows), 16), np.float32))

    def prefill(self, rows):
        if fault == "prefill hangs" and max(len(row.tokens) for row in rows) == 7:
            time.sleep(600)
        return self.out(rows)

    def decode(self, rows):
        if max(row.position for row in rows) > 7 and fault == "device fails" and len(rows) == 2:
            raise DeviceFailedError("the device failed: out of memory")
        return self.out(rows)

    def release(self, slots): pass
    def close(self): print("backend closed, objects frozen:", gc.get_freeze_count(), flush=True)

def load(config):
    if fault == "load hangs":
        time.sleep(600)
    if fault == "load breaks":
        raise KeyError("model.embed_tokens")
    return Backend()

if fault != "none":
    serve_generator.load_backend = load
serve_generator.main(sys.argv[2:])
"""


class Generator:
    """One generator process and what it printed."""

    def __init__(self, folder: Path) -> None:
        self.config = GeneratorConfig(
            str(ROOT / "neuron_server" / "demo_model"), str(folder / "g.sock"), 2, 64, 32, backend="fake"
        )
        self.processes: list[asyncio.subprocess.Process] = []
        self.clients: list[GeneratorClient] = []

    async def start(self, *arguments: str, fault: str = "none") -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", PROGRAM, fault, *(arguments or to_argv(self.config))),
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        self.processes.append(process)
        return process

    async def client(self) -> GeneratorClient:
        client = GeneratorClient(self.config.uds_path, poll_interval_s=0.05, retry_s=0.02)
        self.clients.append(client)
        await client.start()
        return client

    async def close(self) -> None:
        for client in self.clients:
            await client.close()
        for process in self.processes:
            if process.returncode is None:
                process.kill()
            await process.communicate()

    @property
    def left_behind(self) -> list[str]:
        return [path.name for path in Path(self.config.uds_path).parent.iterdir()]


async def end_of(process: asyncio.subprocess.Process) -> tuple[int | None, str]:
    out, _ = await process.communicate()
    return process.returncode, out.decode()


async def first_health(client: GeneratorClient) -> Status:
    while True:
        try:
            return await client.health()
        except GeneratorLostError:
            await asyncio.sleep(0.01)


@pytest.fixture
async def generator() -> AsyncIterator[Generator]:
    with tempfile.TemporaryDirectory(prefix="gen") as folder:
        generator = Generator(Path(folder))
        yield generator
        await generator.close()


def request(tokens: int = 3, new: int = 20) -> GenerationRequest:
    return GenerationRequest(tuple(range(1, tokens + 1)), tokens, new)


# -- life and death of the process


async def test_it_serves_and_sigterm_ends_it_with_0_and_without_a_trace(generator):
    process = await generator.start()
    client = await generator.client()
    await client.wait_ready()
    assert (client.info.device, client.info.shape.batch_size) == ("fake", 2)
    events = [event async for event in client.stream(request())]
    assert len(events) == 20
    process.send_signal(signal.SIGTERM)
    code, out = await end_of(process)
    assert code == 0
    assert "ready: 2 x 64 slots on fake" in out
    assert "Traceback" not in out
    assert generator.left_behind == []


async def test_what_was_imported_and_loaded_is_never_looked_through_for_garbage_again(generator):
    process = await generator.start(fault="slow")
    client = await generator.client()
    await client.wait_ready()
    _ = [event async for event in client.stream(request(new=1))]
    process.send_signal(signal.SIGTERM)
    _, out = await end_of(process)
    assert int(re.search(r"objects frozen: (\d+)", out)[1]) > 10_000


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_during_a_stream_ends_it_at_once_and_closes_the_backend(generator, number):
    process = await generator.start(fault="slow")
    client = await generator.client()
    await client.wait_ready()
    async with aclosing(client.stream(request(new=60))) as events:
        await anext(events)
        process.send_signal(number)
        with pytest.raises(GeneratorLostError):
            async for _ in events:
                pass
    code, out = await end_of(process)
    assert code == 0
    assert "backend closed" in out
    assert generator.left_behind == []


async def test_a_signal_while_the_model_loads_is_obeyed_within_seconds(generator):
    process = await generator.start(fault="load hangs")
    client = await generator.client()
    assert (await first_health(client)).phase is Phase.LOADING
    started = time.perf_counter()
    process.send_signal(signal.SIGTERM)
    code, _ = await end_of(process)
    assert code == 0
    assert time.perf_counter() - started < 6
    assert generator.left_behind == []


async def test_health_answers_and_a_signal_is_obeyed_while_a_prefill_hangs(generator):
    process = await generator.start(fault="prefill hangs")
    client = await generator.client()
    await client.wait_ready()
    stuck = asyncio.create_task(anext(client.stream(request(tokens=7))))
    while client.status.queued == 0:  # noqa: ASYNC110 the poll tells
        await asyncio.sleep(0.01)
    started = time.perf_counter()
    assert (await client.health()).phase is Phase.READY
    assert time.perf_counter() - started < 0.5
    process.send_signal(signal.SIGTERM)
    code, _ = await end_of(process)
    assert code == 0
    with pytest.raises(GeneratorLostError):
        await stuck
    assert generator.left_behind == []


async def test_a_device_failure_reaches_every_request_before_the_exit_with_4(generator):
    process = await generator.start(fault="device fails")
    client = await generator.client()
    await client.wait_ready()

    async def consume() -> None:
        async for _ in client.stream(request(new=60)):
            pass

    outcomes = await asyncio.gather(consume(), consume(), return_exceptions=True)
    assert all(isinstance(outcome, GenerationError) for outcome in outcomes)
    assert {str(outcome) for outcome in outcomes} == {"the device failed: out of memory"}
    code, out = await end_of(process)
    assert code == ExitCode.DEVICE
    assert "the device failed: out of memory" in out
    assert generator.left_behind == []


async def test_a_model_that_is_not_there_ends_it_with_3_and_its_path(generator):
    arguments = to_argv(generator.config)
    arguments.append("--model-path=/no/such/model")
    code, out = await end_of(await generator.start(*arguments))
    assert code == ExitCode.MODEL
    assert "/no/such/model" in out
    assert generator.left_behind == []


async def test_a_load_that_breaks_in_an_unforeseen_way_ends_it_with_1_and_a_traceback(generator):
    code, out = await end_of(await generator.start(fault="load breaks"))
    assert code == ExitCode.INTERNAL
    assert "KeyError: 'model.embed_tokens'" in out


async def test_a_wrong_flag_ends_it_with_2(generator):
    code, out = await end_of(await generator.start("--model-path", "x"))
    assert code == ExitCode.USAGE
    assert "--uds-path" in out


async def test_a_socket_path_too_long_ends_it_with_2_and_both_numbers(caplog):
    config = GeneratorConfig("", "/" + "x" * 119, 1, 2, 1)
    assert await serve(config) is ExitCode.USAGE
    assert "--uds-path" in caplog.text
    assert "has 120 bytes; a socket path has at most 10" in caplog.text


async def test_a_second_generator_on_a_live_socket_ends_with_2_and_leaves_the_first_alone(generator):
    first = await generator.start()
    client = await generator.client()
    await client.wait_ready()
    code, out = await end_of(await generator.start())
    assert code == ExitCode.USAGE
    assert "another server answers there" in out
    assert len([event async for event in client.stream(request())]) == 20
    assert first.returncode is None


async def test_a_killed_generator_is_replaced_on_its_old_socket(generator):
    first = await generator.start()
    client = await generator.client()
    await client.wait_ready()
    first.kill()
    await first.wait()
    assert generator.left_behind == ["g.sock"]
    await generator.start()
    while client.status.phase is Phase.READY:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await client.wait_ready()
    assert len([event async for event in client.stream(request())]) == 20


# -- exit codes


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (ConfigError("x"), ExitCode.USAGE),
        (ModelError("x"), ExitCode.MODEL),
        (DeviceFailedError("x"), ExitCode.DEVICE),
        (SlotBusyError("x"), ExitCode.INTERNAL),
        (MemoryError(), ExitCode.INTERNAL),
    ],
)
def test_each_failure_has_its_exit_code(failure, code):
    assert exit_code(failure) is code
