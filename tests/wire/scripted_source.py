"""A ``SessionSource`` that does what a test says, and tells what was asked of it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterable

from neuron_server.backend import BackendInfo
from neuron_server.errors import NeuronTgiError, UnavailableError
from neuron_server.event import FinishReason, TokenEvent
from neuron_server.request import GenerationRequest
from neuron_server.session import Pass, Phase, Status, Step
from neuron_server.shape import StaticShape
from neuron_server.wire.service import serving

INFO = BackendInfo(
    shape=StaticShape(4, 128),
    max_prompt_tokens=100,
    vocab_size=1000,
    device="scripted",
    can_score_prompt=True,
)


class ScriptedSession:
    """Records submissions and cancels; emits the steps that the test feeds."""

    def __init__(self, source: ScriptedSource) -> None:
        self._source = source
        self._steps: asyncio.Queue[Step | None] = asyncio.Queue()
        self.open: dict[int, GenerationRequest] = {}
        self.submitted: list[int] = []
        self.cancelled: list[int] = []
        self.closed = asyncio.Event()

    def submit(self, request_id: int, request: GenerationRequest) -> None:
        self.open[request_id] = request
        self.submitted.append(request_id)
        self._source.notify()

    def cancel(self, request_id: int) -> None:
        self.open.pop(request_id, None)
        self.cancelled.append(request_id)
        self._source.notify()

    async def steps(self) -> AsyncIterator[Step]:
        while (step := await self._steps.get()) is not None:
            yield step

    def close(self) -> None:
        self.open.clear()
        self.closed.set()
        self._steps.put_nowait(None)

    # -- what a test does with it

    def emit(
        self,
        tokens: Iterable[tuple[int, TokenEvent]] = (),
        errors: Iterable[tuple[int, NeuronTgiError]] = (),
        *,
        passes: Iterable[Pass] = (),
        **occupancy: int,
    ) -> None:
        self._steps.put_nowait(Step(tuple(tokens), tuple(errors), passes=tuple(passes), **occupancy))

    def decode(self, token_id: int, *, finish: FinishReason | None = None) -> None:
        """One step: the same token for every open request."""
        self.emit([(request_id, TokenEvent(token_id, -0.5, finish=finish)) for request_id in self.open])


class ScriptedSource:
    """Ready from the start, unless told otherwise."""

    def __init__(self, info: BackendInfo = INFO) -> None:
        self._info = info
        self.status = Status(Phase.READY, info.shape.batch_size, 0)
        self.sessions: list[ScriptedSession] = []
        self._changes = asyncio.Event()

    @property
    def info(self) -> BackendInfo:
        if self.status.phase is not Phase.READY:
            raise UnavailableError(f"the model is {self.status.phase.value}")
        return self._info

    def open_session(self) -> ScriptedSession:
        session = ScriptedSession(self)
        self.sessions.append(session)
        self.notify()
        return session

    @property
    def session(self) -> ScriptedSession:
        """The latest one."""
        return self.sessions[-1]

    def notify(self) -> None:
        self._changes.set()

    async def until(self, condition) -> None:
        """Wait until ``condition()`` holds; looked at whenever something was asked of a session."""
        while not condition():
            self._changes.clear()
            await self._changes.wait()

    async def until_open(self, count: int) -> ScriptedSession:
        await self.until(lambda: self.sessions and len(self.session.open) >= count)
        return self.session


async def serve_forever(uds_path: str) -> None:
    """A generator that steps by itself: a token per millisecond for each open request, endlessly."""
    source = ScriptedSource()
    async with serving(source, uds_path):
        while True:
            for session in source.sessions:
                if session.open:
                    session.decode(7)
            await asyncio.sleep(0.001)


if __name__ == "__main__":
    asyncio.run(serve_forever(sys.argv[1]))
