"""A client that is quick to notice things, and what tests do with it."""

from __future__ import annotations

import asyncio

from neuron_server.event import TokenEvent
from neuron_server.request import GenerationRequest
from neuron_server.session import Status
from neuron_server.wire.client import GeneratorClient

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
