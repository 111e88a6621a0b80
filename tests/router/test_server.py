"""The application under a real uvicorn on a real socket."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import httpx
import pytest

from neuron_server.router.server import Server
from neuron_server.serve_router import listen


@asynccontextmanager
async def serving(app):
    listener = listen("127.0.0.1", 0)
    server = Server(app)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}") as client:
            yield client
    finally:
        server.should_exit = True
        await task


async def test_head_is_answered_like_get_without_a_body(harness):
    async with serving(harness().app) as client:
        for path in ("/health", "/info", "/metrics", "/ping", "/"):
            answer = await client.head(path)
            assert (answer.status_code, answer.content) == (200, b"")
        assert (await client.head("/generate")).status_code == 405
        assert (await client.get("/info")).json()["model_id"] == "M"


async def test_a_stream_ends_with_its_last_event(harness):
    async with serving(harness().app) as client:
        body = {"inputs": "Hello", "parameters": {"max_new_tokens": 3}}
        async with client.stream("POST", "/generate_stream", json=body) as answer:
            lines = [line async for line in answer.aiter_lines() if line]
        assert len(lines) == 3
        assert all(line.startswith('data: {"index":') for line in lines)


@pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
async def test_a_closed_connection_frees_the_slot(harness, path):
    one = harness()
    async with serving(one.app) as client:
        one.source.gate.clear()
        task = asyncio.create_task(client.post(path, json={"inputs": "Hello"}))
        await one.source.arrived.wait()
        task.cancel()
        await one.source.closed.wait()
        await one.service.idle()


async def test_leaving_in_the_middle_of_a_stream_frees_the_slot(harness):
    one = harness()
    async with serving(one.app) as client:
        body = {"inputs": "Hello", "parameters": {"max_new_tokens": 2000}}
        async with client.stream("POST", "/generate_stream", json=body) as answer:
            await anext(answer.aiter_lines())
        await one.source.closed.wait()
        await one.service.idle()


async def test_a_connection_serves_many_requests(harness):
    async with serving(harness().app) as client:
        for n in range(5):
            answer = await client.post(
                "/generate", json={"inputs": "Hello", "parameters": {"max_new_tokens": n % 2}}
            )
            assert answer.status_code == (200 if n % 2 else 422)


async def test_a_body_beyond_the_limit_is_refused_while_it_arrives(harness):
    async def endless():
        for _ in range(100):
            yield b" " * 10_000

    async with serving(harness(payload_limit=50_000).app) as client:
        answer = await client.post(
            "/generate", content=endless(), headers={"content-type": "application/json"}
        )
        assert answer.status_code == 413
        assert (await client.get("/health")).status_code == 200


async def test_sixteen_streams_at_once_are_complete(harness):
    one = harness()

    async def read(client):
        body = {"inputs": "Hello", "parameters": {"max_new_tokens": 50}}
        async with client.stream("POST", "/generate_stream", json=body, timeout=30) as answer:
            return len([line async for line in answer.aiter_lines() if line])

    async with serving(one.app) as client:
        assert await asyncio.gather(*(read(client) for _ in range(16))) == [50] * 16
    assert one.service.in_flight == 0
