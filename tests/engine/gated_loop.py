"""An engine's loop whose backend waits for the test: events instead of sleeps."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from model_backend import ModelBackend

from neuron_server.engine.loop import EngineLoop
from neuron_server.engine.schedule import Policy
from neuron_server.event import TokenEvent
from neuron_server.request import GenerationRequest
from neuron_server.session import Session, Step

EAGER = Policy(waiting_served_ratio=0.0)


def ask(*tokens: int, new: int = 3) -> GenerationRequest:
    return GenerationRequest(tokens, len(tokens), new)


@asynccontextmanager
async def running(backend: ModelBackend, policy: Policy = EAGER) -> AsyncIterator[EngineLoop]:
    loop = EngineLoop(lambda: backend, policy)
    loop.start()
    await loop.ready()
    backend.calls.clear()
    try:
        yield loop
    finally:
        await loop.close()


class Gate:
    """Holds the engine's thread inside a call of the backend until the test lets it go."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._entered = asyncio.Event()
        self._release = threading.Semaphore(0)
        self.closed = False

    def __call__(self, rows: object) -> None:
        if self.closed:
            self._loop.call_soon_threadsafe(self._entered.set)
            self._release.acquire()

    async def entered(self) -> None:
        await self._entered.wait()
        self._entered.clear()

    def let_go(self) -> None:
        self._release.release()

    def open(self) -> None:
        self.closed = False
        self._release.release(100)


async def take(session: Session, until: Callable[[list[Step]], bool]) -> list[Step]:
    """Steps of a session until they satisfy the test."""
    steps: list[Step] = []
    iterator = session.steps()
    while not until(steps):
        steps.append(await anext(iterator))
    return steps


def finished(count: int) -> Callable[[list[Step]], bool]:
    def done(steps: list[Step]) -> bool:
        ends = sum(event.finish is not None for step in steps for _, event in step.tokens)
        return ends + sum(len(step.errors) for step in steps) >= count

    return done


def tokens_of(steps: list[Step], request_id: int) -> list[TokenEvent]:
    return [event for step in steps for number, event in step.tokens if number == request_id]


async def collect(loop: EngineLoop, request: GenerationRequest) -> list[TokenEvent]:
    return [event async for event in loop.stream(request)]
