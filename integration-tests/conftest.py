"""Launchers for the tests: one of its own for a test, one that many share."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from harness import Server


@pytest.fixture
def launch() -> Iterator[Callable[..., Server]]:
    """Start launchers that are stopped, whatever happens, when the test ends."""
    servers: list[Server] = []

    def start(*flags: str, **options: object) -> Server:
        server = Server(*flags, **options)  # type: ignore[arg-type]
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def demo() -> Iterator[Server]:
    """The embedded demo model on 4 slots, as ``make run`` serves it; shared, so leave it as you found it."""
    server = Server("--max-batch-size", "4", "--max-concurrent-requests", "64")
    try:
        yield server.wait_ready()
    finally:
        code = server.stop()
    assert code == 0, server.output
