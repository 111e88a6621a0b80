"""``GeneratorClient`` against a scripted generator: the call shape, and every way to lose the other side."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from contextlib import AsyncExitStack, aclosing
from pathlib import Path

import pytest

from neuron_server.backend import BackendInfo
from neuron_server.errors import (
    DeviceFailedError,
    GenerationError,
    GeneratorLostError,
    OverloadedError,
    PromptTooLongError,
    UnavailableError,
    ValidationError,
)
from neuron_server.event import FinishReason, TokenEvent
from neuron_server.request import GenerationRequest, SamplingParams
from neuron_server.session import Phase, Status
from neuron_server.shape import StaticShape
from neuron_server.wire.client import LOST, GeneratorClient
from neuron_server.wire.service import serving

REQUEST = GenerationRequest((1, 2, 3), 3, 50)


def quick_client(uds_path: str, **settings) -> GeneratorClient:
    return GeneratorClient(uds_path, **{"poll_interval_s": 0.05, "retry_s": 0.02, **settings})


async def collect(client: GeneratorClient, request: GenerationRequest = REQUEST) -> list[TokenEvent]:
    return [event async for event in client.stream(request)]


def collecting(client: GeneratorClient, count: int) -> list[asyncio.Task[list[TokenEvent]]]:
    return [asyncio.create_task(collect(client)) for _ in range(count)]


async def until_status(client: GeneratorClient, condition) -> Status:
    """The status is polled state: look until it holds (the test's time limit is the bound)."""
    while not condition(client.status):  # noqa: ASYNC110 nothing is set when it changes
        await asyncio.sleep(0.005)
    return client.status


# -- the call shape


async def test_events_come_in_order_and_the_last_has_the_finish(client, source):
    task = asyncio.create_task(collect(client))
    session = await source.until_open(1)
    for token in range(49):
        session.decode(token)
    session.decode(49, finish=FinishReason.EOS_TOKEN)
    events = await task
    assert [event.token_id for event in events] == list(range(50))
    assert [event.finish for event in events[-2:]] == [None, FinishReason.EOS_TOKEN]
    assert client.open_requests == 0


async def test_the_request_arrives_as_it_was_sent(client, source):
    request = GenerationRequest(
        (5, 6, 7, 8), 3, 9, SamplingParams(True, 0.7, 5, 0.9, seed=2**64 - 1), frozenset({2, 3}), True
    )
    async with aclosing(client.stream(request)) as events:
        pending = asyncio.create_task(anext(events))
        session = await source.until_open(1)
        assert list(session.open.values()) == [request]
        session.decode(1)
        await pending


async def test_all_streams_of_a_client_share_one_session(client, source):
    tasks = collecting(client, 20)
    session = await source.until_open(20)
    session.decode(1, finish=FinishReason.LENGTH)
    await asyncio.gather(*tasks)
    assert len(source.sessions) == 1


async def test_each_stream_gets_its_own_events(client, source):
    tasks = collecting(client, 3)
    session = await source.until_open(3)
    ids = list(session.open)
    session.emit([(request_id, TokenEvent(100 + request_id)) for request_id in reversed(ids)])
    session.decode(1, finish=FinishReason.LENGTH)
    assert [events[0].token_id for events in await asyncio.gather(*tasks)] == [100 + i for i in ids]


async def test_closing_a_stream_cancels_it_before_the_next_step_and_leaves_the_others(client, source):
    staying = asyncio.create_task(collect(client))
    session = await source.until_open(1)
    events = client.stream(REQUEST)
    first = asyncio.create_task(anext(events))
    await source.until_open(2)
    session.decode(1)
    await first
    await events.aclose()
    assert client.open_requests == 1
    await source.until(lambda: session.cancelled)
    assert session.cancelled == [2]
    session.decode(2, finish=FinishReason.LENGTH)
    assert [event.token_id for event in await staying] == [1, 2]


async def test_cancelling_the_task_of_a_stream_cancels_the_request(client, source):
    task = asyncio.create_task(collect(client))
    session = await source.until_open(1)
    task.cancel()
    await source.until(lambda: session.cancelled)
    assert client.open_requests == 0


async def test_a_finished_stream_sends_no_cancel(client, source):
    finished, other = collecting(client, 2)
    session = await source.until_open(2)
    session.emit([(1, TokenEvent(1, finish=FinishReason.LENGTH))])
    await finished
    other.cancel()
    await source.until(lambda: session.cancelled)
    assert session.cancelled == [2]


async def test_events_of_a_cancelled_request_that_were_on_their_way_are_dropped(client, source):
    task = asyncio.create_task(collect(client))
    session = await source.until_open(1)
    task.cancel()
    await source.until(lambda: session.cancelled)
    session.emit([(1, TokenEvent(1)), (77, TokenEvent(1))], [(1, GenerationError("late"))])
    again = asyncio.create_task(collect(client))
    await source.until_open(1)
    session.decode(3, finish=FinishReason.LENGTH)
    assert [event.token_id for event in await again] == [3]


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (ValidationError("top_p is 2"), ValidationError),
        (OverloadedError("full"), OverloadedError),
        (UnavailableError("draining"), UnavailableError),
        (GenerationError("bad step"), GenerationError),
        (PromptTooLongError("600 tokens in slot 3"), GenerationError),
    ],
)
async def test_an_error_of_one_request_ends_its_stream_alone_with_its_class(client, source, raised, kind):
    failing, healthy = collecting(client, 2)
    session = await source.until_open(2)
    session.emit(errors=[(1, raised)])
    with pytest.raises(kind, match=str(raised)) as caught:
        await failing
    assert type(caught.value) is kind
    session.emit([(2, TokenEvent(4, finish=FinishReason.LENGTH))])
    assert len(await healthy) == 1


async def test_a_request_the_slots_cannot_hold_is_a_validation_error(client):
    with pytest.raises(ValidationError, match="exceed a slot of 128"):
        await collect(client, GenerationRequest((1,), 1, 128))


async def test_a_request_that_does_not_fit_the_wire_hurts_nobody_else(client, source):
    task = asyncio.create_task(collect(client))
    session = await source.until_open(1)
    with pytest.raises(ValidationError, match="does not fit the wire"):
        await collect(client, GenerationRequest((-1,), 1, 1))
    session.decode(1, finish=FinishReason.LENGTH)
    assert len(await task) == 1


async def test_a_thousand_streams_at_once_each_get_every_step_in_order(client, source):
    tasks = collecting(client, 1000)
    session = await source.until_open(1000)
    for token in range(9):
        session.decode(token)
    session.decode(9, finish=FinishReason.LENGTH)
    for events in await asyncio.gather(*tasks):
        assert [event.token_id for event in events] == list(range(10))
    assert client.open_requests == 0


async def test_a_prompt_of_a_hundred_thousand_ids_and_its_logprobs_fit(uds_path, closing):
    from scripted_source import ScriptedSource

    length = 100_000
    source = ScriptedSource(BackendInfo(StaticShape(1, 2 * length), length, 200_000))
    await closing.enter_async_context(serving(source, uds_path))
    client = quick_client(uds_path)
    await client.start()
    closing.push_async_callback(client.close)
    await client.wait_ready()
    ids = tuple(range(100_000, 100_000 + length))
    task = asyncio.create_task(collect(client, GenerationRequest(ids, length, 10, prompt_logprobs=True)))
    session = await source.until_open(1)
    assert session.open[1].input_ids == ids
    logprobs = (None, *[-0.25] * (length - 1))
    session.emit([(1, TokenEvent(1, finish=FinishReason.LENGTH, prompt_logprobs=logprobs))])
    (event,) = await task
    assert event.prompt_logprobs == logprobs


# -- state


async def test_before_the_socket_exists_it_is_loading_and_streams_are_refused(uds_path, closing):
    client = quick_client(uds_path)
    await client.start()
    closing.push_async_callback(client.close)
    assert client.status == Status(Phase.LOADING)
    with pytest.raises(UnavailableError, match="the generator is loading"):
        await collect(client)
    with pytest.raises(UnavailableError):
        _ = client.info
    with pytest.raises(GeneratorLostError):
        await client.health(timeout_s=1.0)


async def test_it_becomes_ready_when_the_socket_appears_and_the_model_has_loaded(uds_path, source, closing):
    client = quick_client(uds_path)
    await client.start()
    closing.push_async_callback(client.close)
    source.status = Status(Phase.WARMING_UP)
    await closing.enter_async_context(serving(source, uds_path))
    await until_status(client, lambda status: status.phase is Phase.WARMING_UP)
    assert source.sessions == []
    source.status = Status(Phase.READY, 4, 0)
    await client.wait_ready()
    assert client.info.shape == StaticShape(4, 128)
    assert client.status == Status(Phase.READY, 4, 0)


async def test_occupancy_follows_every_step_without_a_poll(uds_path, source, closing):
    await closing.enter_async_context(serving(source, uds_path))
    client = quick_client(uds_path, poll_interval_s=3600.0)
    await client.start()
    closing.push_async_callback(client.close)
    await client.wait_ready()
    task = asyncio.create_task(collect(client))
    session = await source.until_open(1)
    session.emit([(1, TokenEvent(1, finish=FinishReason.LENGTH))], free_slots=1, queued=6)
    await task
    assert client.status == Status(Phase.READY, 1, 6)


async def test_the_poll_sees_what_no_step_tells(client, source):
    source.status = Status(Phase.READY, 0, 12)
    assert await until_status(client, lambda status: status.queued) == Status(Phase.READY, 0, 12)


async def test_health_answers_in_milliseconds_while_a_step_is_blocked(client, source):
    tasks = collecting(client, 4)
    await source.until_open(4)  # and no step ever comes
    started = time.perf_counter()
    assert (await client.health()).phase is Phase.READY
    assert time.perf_counter() - started < 0.5
    for task in tasks:
        task.cancel()


async def test_a_failed_generator_is_seen_with_its_reason(client, source):
    task = asyncio.create_task(collect(client))
    await source.until_open(1)
    source.status = Status(Phase.FAILED, detail="the device is gone")
    with pytest.raises(GeneratorLostError, match="the device is gone"):
        await task
    status = await until_status(client, lambda status: status.phase is Phase.FAILED)
    assert status.detail == "the device is gone"


async def test_open_requests_are_known_at_once(client, source):
    tasks = collecting(client, 7)
    await asyncio.sleep(0)
    assert client.open_requests == 7
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert client.open_requests == 0


# -- losing the other side


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
