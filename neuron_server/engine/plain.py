"""The engine without thread, asyncio or wire: for benchmarks and tests, and to see what the rest costs."""

from __future__ import annotations

from collections.abc import Sequence

from neuron_server.backend import Backend
from neuron_server.engine.batcher import Batcher
from neuron_server.engine.schedule import Policy
from neuron_server.event import TokenEvent
from neuron_server.request import GenerationRequest


def generate(
    backend: Backend,
    requests: Sequence[GenerationRequest],
    policy: Policy | None = None,
    *,
    approximate_top_p: bool = False,
) -> list[list[TokenEvent]]:
    """Run all requests, submitted in order at once, and return the events of each.

    Raises the first error of any request. The backend's slots must be free; they are free again afterwards.
    """
    batcher: Batcher[int] = Batcher(backend, policy or Policy(), approximate_top_p=approximate_top_p)
    events: list[list[TokenEvent]] = [[] for _ in requests]
    for number, request in enumerate(requests):
        batcher.submit(number, request)
    while not batcher.idle:
        for outcome in batcher.turn():
            for _, error in outcome.errors:
                raise error
            for number, event in outcome.tokens:
                events[number].append(event)
    return events
