"""Keep-alive, disconnects, and errors around the first event, on raw ASGI (conformance cases 92, 93)."""

from __future__ import annotations

import asyncio
import json

import pytest
from raw_request import Wire

from neuron_server.errors import GenerationError
from neuron_server.router import sse
from neuron_server.router.sse import EventStream, begin


async def stream_of(items):
    for item in items:
        if isinstance(item, Exception):
            raise item
        if isinstance(item, asyncio.Event):
            await item.wait()
        else:
            yield item


@pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/"])
async def test_a_client_that_leaves_while_queued_frees_what_it_held(harness, path):
    one = harness()
    one.source.gate.clear()
    wire = Wire(one.app, path, {"inputs": "Hello"})
    await one.source.arrived.wait()
    wire.leave()
    await one.source.closed.wait()
    await wire.task
    assert one.service.in_flight == 0
    lines = one.service.metrics.render().decode().splitlines()
    assert 'tgi_request_failure{err="dropped"} 1' in lines


@pytest.mark.case(93)
async def test_a_client_that_leaves_mid_stream_frees_what_it_held(harness):
    one = harness()
    wire = Wire(one.app, "/generate_stream", {"inputs": "Hello"})
    assert b'"index":1,' in await wire.body()
    one.source.gate.clear()
    wire.leave()
    await one.source.closed.wait()
    await wire.task
    assert one.service.in_flight == 0
    assert 'err="dropped"} 1' in one.service.metrics.render().decode()


async def test_both_copies_of_best_of_end_with_their_client(harness):
    one = harness()
    one.source.gate.clear()
    wire = Wire(one.app, "/generate", {"inputs": "Hello", "parameters": {"best_of": 2, "do_sample": True}})
    for _ in range(50):
        await asyncio.sleep(0)
    assert len(one.source.requests) == 2
    wire.leave()
    await wire.task
    assert one.service.in_flight == 0


async def test_events_go_out_one_by_one(harness):
    one = harness()
    wire = Wire(one.app, "/generate_stream", {"inputs": "Hello", "parameters": {"max_new_tokens": 2}})
    assert b'"index":1,' in await wire.body()
    assert b'"index":2,' in await wire.body()
    assert await wire.body() == b""
    await wire.task


@pytest.mark.case(92)
async def test_a_slow_first_token_opens_the_stream_with_a_keep_alive(harness, monkeypatch):
    monkeypatch.setattr(sse, "KEEP_ALIVE_S", 0.01)
    monkeypatch.setattr(sse, "begin", lambda frames: begin(frames, patience_s=0.01))
    one = harness(script=(GenerationError("late"),))
    one.source.gate.clear()
    wire = Wire(one.app, "/generate_stream", {"inputs": "Hello"})
    assert await wire.body() == b":\n\n"
    one.source.gate.set()
    body = await wire.body()
    assert json.loads(body.removeprefix(b"data: "))["error_type"] == "generation"
    assert await wire.body() == b""
    await wire.task
    assert one.service.in_flight == 0


async def run(frames, *, keep_alive_s, receive=None):
    sent: asyncio.Queue[bytes] = asyncio.Queue()
    closed = []

    async def send(message):
        await sent.put(message.get("body"))

    async def never():
        await asyncio.Event().wait()

    async def close():
        closed.append(True)

    first = await begin(frames)
    response = EventStream(first, frames, headers={}, close=close, keep_alive_s=keep_alive_s)
    task = asyncio.create_task(response({}, receive or never, send))
    assert await sent.get() is None
    return sent, task, closed


@pytest.mark.case(92)
async def test_keep_alives_repeat_while_nothing_happens_and_stop_with_the_stream():
    more = asyncio.Event()
    assert sse.KEEP_ALIVE_S == 15
    sent, task, closed = await run(stream_of([b"1", more, b"2"]), keep_alive_s=0.005)
    assert await sent.get() == b"1"
    for _ in range(3):
        assert await sent.get() == b":\n\n"
    more.set()
    rest = []
    while (body := await sent.get()) != b"":
        rest.append(body)
    assert rest[-1] == b"2"
    await task
    assert closed == [True]
    assert sent.empty()


async def test_an_event_restarts_the_keep_alive_timer():
    gates = [asyncio.Event() for _ in range(6)]
    items = [b"0"]
    for gate in gates:
        items += [gate, b"x"]
    sent, task, _ = await run(stream_of(items), keep_alive_s=0.5)
    bodies = [await sent.get()]
    for gate in gates:  # six events in 0.6 s: a fixed timer would have fired, this one must not
        asyncio.get_running_loop().call_later(0.1, gate.set)
        bodies.append(await sent.get())
    await task
    assert b":\n\n" not in bodies


async def test_an_unknown_error_in_a_stream_is_one_event_that_tells_nothing():
    sent, task, closed = await run(stream_of([b"1", KeyError("secret")]), keep_alive_s=9)
    assert await sent.get() == b"1"
    assert await sent.get() == b'data: {"error":"Internal server error","error_type":"internal"}\n\n'
    await task
    assert closed == [True]


async def test_begin_raises_what_fails_first_and_cleans_up_when_cancelled():
    with pytest.raises(GenerationError):
        await begin(stream_of([GenerationError("x")]))
    frames = stream_of([asyncio.Event(), b"1"])
    task = asyncio.create_task(begin(frames))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await frames.aclose()  # it is not running any more
