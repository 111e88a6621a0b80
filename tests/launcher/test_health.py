from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from launcher.health import Health, ask, replica_phases, url


@asynccontextmanager
async def answering(data: bytes) -> AsyncIterator[int]:
    """A server that says ``data`` to everyone; yields its port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(data)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.parametrize(
    ("data", "health"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", Health(200)),
        (
            b'HTTP/1.1 503 Service Unavailable\r\n\r\n{"error":"loading","error_type":"unavailable"}',
            Health(503, "loading"),
        ),
        (
            b'HTTP/1.1 503 Service Unavailable\r\n\r\n{"error":"unhealthy","phase":"warming up"}',
            Health(503, "warming up"),
        ),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\nloading\n", Health(503, "loading")),
        (b"HTTP/1.1 503 X\r\n\r\n[1]", Health(503, "[1]")),
        (b"", Health(0)),
        (b"what?", Health(0)),
        (b"not a status", Health(0)),
    ],
)
async def test_what_is_answered_is_understood(data, health):
    async with answering(data) as port:
        assert await ask("0.0.0.0", port) == health


@pytest.mark.parametrize(
    ("data", "phases"),
    [
        (b'HTTP/1.1 200 OK\r\n\r\n{"replicas":[{"phase":"ready"},{"phase":"lost"}]}', ("ready", "lost")),
        (b'HTTP/1.1 200 OK\r\n\r\n{"replicas":[]}', ()),
        (b'HTTP/1.1 200 OK\r\n\r\n{"replicas":2}', ()),  # somebody else's /info
        (b'HTTP/1.1 200 OK\r\n\r\n{"replicas":[{"rank":0}]}', ()),
        (b"HTTP/1.1 200 OK\r\n\r\n[1]", ()),
        (b'HTTP/1.1 404 Not Found\r\n\r\n{"replicas":[{"phase":"ready"}]}', ()),
        (b"HTTP/1.1 200 OK\r\n\r\n{", ()),
        (b"", ()),
    ],
)
async def test_the_phases_of_the_replicas_are_what_info_says(data, phases):
    async with answering(data) as port:
        assert await replica_phases("0.0.0.0", port) == phases


async def test_nobody_there_is_status_0():
    async with answering(b"") as port:
        pass
    assert not (await ask("127.0.0.1", port)).ready


@pytest.mark.parametrize(
    ("hostname", "address"),
    [
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("10.1.2.3", "http://10.1.2.3:80"),
        ("::", "http://[::1]:80"),
        ("::1", "http://[::1]:80"),
    ],
)
def test_the_address_to_paste_is_one_that_this_machine_reaches(hostname, address):
    assert url(hostname, 80) == address
