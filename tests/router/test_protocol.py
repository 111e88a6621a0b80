"""What a connection may do to the server: offers to upgrade, pipelined requests, endless headers."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager

import pytest

from neuron_server.router.protocol import MAX_HEAD_BYTES
from neuron_server.router.server import Server
from neuron_server.serve_router import listen


@asynccontextmanager
async def connected(app):
    listener = listen("127.0.0.1", 0)
    server = Server(app)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    try:
        yield reader, writer
    finally:
        writer.close()
        server.should_exit = True
        await task


def request(path: str, *headers: str, **parameters) -> bytes:
    body = json.dumps({"inputs": "Hello", "parameters": parameters})
    lines = [f"POST {path} HTTP/1.1", "Host: t", "Content-Type: application/json", *headers]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", body]).encode()


async def answer(reader) -> tuple[int, bytes]:
    """Status and body of the next response that declares its length."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
    return int(head.split()[1]), await reader.readexactly(length)


H2C = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA")
WEBSOCKET = ("Connection: Upgrade", "Upgrade: websocket")


@pytest.mark.parametrize("offer", [H2C, WEBSOCKET])
@pytest.mark.parametrize("size", [1, 40, 10_000])
async def test_a_request_that_offers_an_upgrade_is_served_as_it_is(harness, offer, size):
    async with connected(harness().app) as (reader, writer):
        sent = request("/generate", *offer, max_new_tokens=2) + request("/generate", max_new_tokens=1)
        for at in range(0, len(sent), size):
            writer.write(sent[at : at + size])
            await asyncio.sleep(0)
        assert await answer(reader) == (200, b'{"generated_text":"hh"}')
        assert await answer(reader) == (200, b'{"generated_text":"h"}')


@pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
async def test_a_client_that_leaves_takes_its_pipelined_requests_with_it(harness, path):
    one = harness()
    async with connected(one.app) as (_, writer):
        one.source.gate.clear()
        for _ in range(3):
            writer.write(request(path, max_new_tokens=5))
        await one.source.arrived.wait()
        writer.transport.abort()
        await one.source.closed.wait()
        await one.service.idle()
    assert len(one.source.requests) == 1


async def test_a_stream_to_a_client_of_http_1_0_has_no_chunks_and_ends_with_the_connection(harness):
    """Such a client takes the sizes of chunks for part of the events."""
    async with connected(harness().app) as (reader, writer):
        writer.write(request("/generate_stream", max_new_tokens=3).replace(b"HTTP/1.1", b"HTTP/1.0"))
        head, _, events = (await reader.read()).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert b"connection: close" in head
    assert [event[:6] for event in events.split(b"\n\n")] == [b"data: ", b"data: ", b"data: ", b""]


@pytest.mark.parametrize("path", ["/generate", "/nowhere"])
async def test_a_client_of_http_1_0_gets_whole_answers_too(harness, path):
    async with connected(harness().app) as (reader, writer):
        writer.write(request(path, max_new_tokens=1).replace(b"HTTP/1.1", b"HTTP/1.0"))
        status, body = await answer(reader)
        assert await reader.read() == b""
    assert (status, body) == ((200, b'{"generated_text":"h"}') if path == "/generate" else (404, b""))


async def test_endless_headers_are_refused(harness):
    async with connected(harness().app) as (reader, writer):
        head = b"GET /health HTTP/1.1\r\nHost: t\r\nX-A: "
        writer.write(head + b"a" * (MAX_HEAD_BYTES + 1 - len(head)))
        assert (await answer(reader))[0] == 400
        assert await reader.read() == b""


async def test_long_but_finite_headers_are_fine(harness):
    async with connected(harness().app) as (reader, writer):
        writer.write(request("/generate", "X-A: " + "a" * 30_000, max_new_tokens=1))
        assert (await answer(reader))[0] == 200


async def test_a_request_for_a_tunnel_is_refused_once(harness, caplog):
    async with connected(harness().app) as (reader, writer):
        writer.write(b"CONNECT example.com:80 HTTP/1.1\r\nHost: example.com:80\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
    assert "Traceback" not in caplog.text
