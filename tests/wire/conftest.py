"""A scripted generator behind a real unix socket, and a client of it."""

from __future__ import annotations

import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from neuron_server.wire.client import GeneratorClient
from neuron_server.wire.service import serving

sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode adds no folder to the path

from scripted_source import ScriptedSource


@pytest.fixture
def uds_path():
    """A socket path that is short enough for every platform (107 bytes); pytest's tmp_path may not be."""
    with tempfile.TemporaryDirectory(prefix="wire") as folder:
        yield str(Path(folder) / "generator.sock")


@pytest.fixture
async def source():
    return ScriptedSource()


@pytest.fixture
async def closing():
    """What a test opens with it is closed in reverse order."""
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
async def client(uds_path, source, closing):
    """Connected to ``source``, and quick to notice things."""
    await closing.enter_async_context(serving(source, uds_path))
    client = GeneratorClient(uds_path, poll_interval_s=0.05, retry_s=0.02)
    await client.start()
    closing.push_async_callback(client.close)
    await client.wait_ready()
    return client
