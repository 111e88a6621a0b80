"""``GeneratorClient`` against a scripted generator: the call shape, and the state it knows."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing

import pytest
from quick_client import REQUEST, collect, collecting, quick_client, until_status

from neuron_server.backend import BackendInfo
from neuron_server.errors import (
    GenerationError,
    GeneratorLostError,
    OverloadedError,
    PromptTooLongError,
    UnavailableError,
    ValidationError,
)
from neuron_server.event import FinishReason, TokenEvent
from neuron_server.request import GenerationRequest, SamplingParams
from neuron_server.session import Pass, Phase, Status
from neuron_server.shape import StaticShape
from neuron_server.wire.service import serving

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


# -- passes


async def test_passes_are_heard_after_the_tokens_of_their_message_were_delivered(uds_path, source, closing):
    heard = []
    await closing.enter_async_context(serving(source, uds_path))
    client = quick_client(uds_path, on_passes=lambda passes, delivery_s: heard.append((passes, delivery_s)))
    await client.start()
    closing.push_async_callback(client.close)
    await client.wait_ready()
    task = asyncio.create_task(collect(client))
    session = await source.until_open(1)
    (request_id,) = session.open
    prefill, decode = Pass("prefill", 1, joined=1), Pass("decode", 1, forward_s=0.5)
    session.emit([(request_id, TokenEvent(1))], passes=[prefill])
    session.emit([(request_id, TokenEvent(2))])
    session.emit(passes=[decode])
    session.emit([(request_id, TokenEvent(3, finish=FinishReason.LENGTH))], passes=[decode, decode])
    assert [event.token_id for event in await task] == [1, 2, 3]
    assert [passes for passes, _ in heard] == [[prefill], [decode], [decode, decode]]
    assert all(0 <= delivery_s < 1 for _, delivery_s in heard)
