"""``GeneratorClient`` and every way to lose the other side."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from contextlib import AsyncExitStack, aclosing
from pathlib import Path

import pytest
from quick_client import REQUEST, collect, collecting, quick_client, until_status

from neuron_server.errors import DeviceFailedError, GeneratorLostError, UnavailableError
from neuron_server.event import FinishReason, TokenEvent
from neuron_server.request import GenerationRequest
from neuron_server.session import Phase, Status
from neuron_server.wire.client import LOST, GeneratorClient
from neuron_server.wire.service import serving


async def test_a_dead_device_loses_every_stream_so_that_all_can_be_resumed(client, source):
    tasks = collecting(client, 3)
    session = await source.until_open(3)
    session.emit([(2, TokenEvent(1))], [(1, DeviceFailedError("the device failed: out of memory"))])
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        assert type(outcome) is GeneratorLostError
        assert str(outcome) == "the device failed: out of memory"


async def test_a_server_that_ends_loses_every_stream_and_its_return_is_noticed(uds_path, source, closing):
    client = quick_client(uds_path)
    await client.start()
    closing.push_async_callback(client.close)
    async with AsyncExitStack() as first:
        await first.enter_async_context(serving(source, uds_path, grace_s=0))
        await client.wait_ready()
        tasks = collecting(client, 5)
        await source.until_open(5)
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        assert type(outcome) is GeneratorLostError
    assert client.status.phase is Phase.LOADING
    assert client.status.detail.startswith(LOST)
    assert client.open_requests == 0
    with pytest.raises(UnavailableError, match="lost"):
        await collect(client)
    async with serving(source, uds_path):
        await client.wait_ready()
        task = asyncio.create_task(collect(client))
        session = await source.until_open(1)
        session.decode(1, finish=FinishReason.LENGTH)
        assert len(await task) == 1


async def test_a_loss_is_heard_once_and_closing_is_none(uds_path, source, closing):
    losses = []
    client = quick_client(uds_path, on_lost=lambda: losses.append(client.status.phase))
    await client.start()
    async with serving(source, uds_path, grace_s=0):
        await client.wait_ready()
        tasks = collecting(client, 2)
        await source.until_open(2)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert len(losses) == 1
    async with serving(source, uds_path, grace_s=0):
        await client.wait_ready()
        await client.close()
    assert len(losses) == 1


async def test_who_learns_of_the_loss_finds_the_new_state_already(client, source):
    async def resubmit() -> Status:
        with pytest.raises(GeneratorLostError):
            await collect(client)
        return client.status

    task = asyncio.create_task(resubmit())
    session = await source.until_open(1)
    session.close()
    assert (await task).phase is Phase.LOADING


async def test_a_source_that_ends_its_session_is_connected_to_again(client, source):
    task = asyncio.create_task(collect(client))
    session = await source.until_open(1)
    session.close()
    with pytest.raises(GeneratorLostError, match="ended the connection"):
        await task
    await client.wait_ready()
    await source.until(lambda: len(source.sessions) == 2)


async def test_closing_the_client_ends_its_streams_and_frees_their_slots(client, source):
    tasks = collecting(client, 3)
    session = await source.until_open(3)
    await client.close()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        assert type(outcome) is GeneratorLostError
    await session.closed.wait()
    await client.close()
    with pytest.raises(GeneratorLostError):
        await client.health()


async def test_closing_a_client_that_never_started_or_never_connected_is_fine(uds_path):
    await GeneratorClient(uds_path).close()
    client = quick_client(uds_path)
    await client.start()
    await client.close()


@pytest.fixture
async def process(uds_path):
    """A generator in a process of its own, which can be killed."""
    started = []

    async def start():
        program = Path(__file__).parent / "scripted_source.py"
        root = program.parents[2]
        child = await asyncio.create_subprocess_exec(sys.executable, str(program), uds_path, cwd=root)
        started.append(child)
        return child

    yield start
    for child in started:
        if child.returncode is None:
            child.kill()
        await child.wait()


async def test_a_killed_generator_loses_every_stream_at_once_and_its_restart_is_found(
    uds_path, process, closing
):
    child = await process()
    client = quick_client(uds_path)
    await client.start()
    closing.push_async_callback(client.close)
    await client.wait_ready()
    streams = [client.stream(GenerationRequest((1,), 1, 100)) for _ in range(50)]
    await asyncio.gather(*(anext(stream) for stream in streams))

    async def drain(stream) -> None:
        async for _ in stream:
            pass

    tasks = [asyncio.create_task(drain(stream)) for stream in streams]
    started = time.perf_counter()
    child.kill()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert time.perf_counter() - started < 2.0
    assert {type(outcome) for outcome in outcomes} == {GeneratorLostError}
    await process()  # the dead one's socket file is still there
    await client.wait_ready()
    async with aclosing(client.stream(REQUEST)) as events:
        assert (await anext(events)).token_id == 7


async def test_a_generator_is_silent_until_it_answers_again(uds_path, process, closing):
    child = await process()
    client = quick_client(uds_path, health_timeout_s=0.1, patience=1_000)
    await client.start()
    closing.push_async_callback(client.close)
    await client.wait_ready()
    assert not client.silent
    os.kill(child.pid, signal.SIGSTOP)
    await until_status(client, lambda _: client.silent)
    assert client.status.phase is Phase.READY
    os.kill(child.pid, signal.SIGCONT)
    await until_status(client, lambda _: not client.silent)


async def test_a_generator_that_stands_still_is_lost_when_health_stays_unanswered(uds_path, process, closing):
    child = await process()
    client = quick_client(uds_path, health_timeout_s=0.1, patience=3)
    await client.start()
    closing.push_async_callback(client.close)
    await client.wait_ready()
    stream = client.stream(REQUEST)
    await anext(stream)
    os.kill(child.pid, signal.SIGSTOP)
    with pytest.raises(GeneratorLostError, match=r"no answer to a health check for 0\.1 s, 3 times in a row"):
        async for _ in stream:
            pass
    assert client.status.phase is Phase.LOADING
    os.kill(child.pid, signal.SIGCONT)
    await client.wait_ready()
