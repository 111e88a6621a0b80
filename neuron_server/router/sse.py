"""Server-sent events on the wire: framing, keep-alive, and the client that leaves.

Plain ASGI rather than sse-starlette's ``EventSourceResponse``, for three reasons. That one pings every 15 s
whatever was sent, where TGI's timer restarts on every event. It ends all streams once uvicorn is told to
stop (by patching uvicorn's ``Server``), where a drain must let them finish. And it enters a cancel scope for
each event: fed with the same ready bytes it took 29 us of server CPU per event, this class 22, an idle loop
woken as often 8 (medians of six alternated runs, 16 clients, uvicorn with uvloop, a busy two-core machine).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import NamedTuple

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from neuron_server.router.disconnect import WhileConnected, disconnected
from neuron_server.router.errors import openai_event, reply

logger = logging.getLogger(__name__)

#: Seconds without an event after which a comment is sent, so that no proxy closes the connection.
KEEP_ALIVE_S = 15.0
KEEP_ALIVE = b":\n\n"

Frames = AsyncGenerator[bytes, None]


def frame(data: bytes) -> bytes:
    """One data event."""
    return b"data: " + data + b"\n\n"


class Dialect(NamedTuple):
    """How a family of routes tells an error in mid-stream, and what its last bytes are."""

    error: Callable[[Exception], bytes]
    end: bytes = b""


TGI = Dialect(lambda error: reply(error, streaming=True).body)
OPENAI = Dialect(openai_event, frame(b"[DONE]"))


def error_frame(error: Exception, dialect: Dialect) -> bytes:
    """The event of an error in mid-stream; a defect goes to the log as well."""
    if reply(error).status == 500:
        logger.error("a stream failed", exc_info=error)
    return frame(dialect.error(error))


async def _nothing() -> None:
    """What frames need that take and free by themselves what they are made from."""


async def stream(
    request: Request,
    frames: Frames,
    *,
    admit: Callable[[], Awaitable[None]] = _nothing,
    close: Callable[[], Awaitable[None]] = _nothing,
    headers: Mapping[str, str],
    dialect: Dialect = TGI,
) -> EventStream:
    """``frames`` as a response, once ``admit`` and the first of them have succeeded.

    What those two raise is raised here, so that it gets its own HTTP status; ``close`` has been called then.
    """
    try:
        async with WhileConnected(request.receive):
            await admit()
            first = await begin(frames)
    except BaseException:
        await frames.aclose()
        await close()
        raise
    return EventStream(first, frames, headers=headers, close=close, dialect=dialect)


async def begin(frames: Frames, *, patience_s: float = KEEP_ALIVE_S) -> asyncio.Task[bytes]:
    """Ask for the first frame and wait for it, so that what fails before it keeps its own HTTP status.

    Waits ``patience_s`` at most; after that the task is returned unfinished. Raises what ``frames`` raises.
    """

    async def first() -> bytes:
        return await anext(frames)

    task = asyncio.create_task(first())
    try:
        await asyncio.wait({task}, timeout=patience_s)
    except asyncio.CancelledError:
        await _cancel(task)
        raise
    if task.done():
        task.result()
    return task


class EventStream(Response):
    """Streams ``first`` and then ``frames``; calls ``close`` at the end, whatever the end is.

    ``frames`` may raise: the error becomes one last event. A client that disconnects cancels what is awaited,
    at once. ``close`` frees what the frames are made from.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        first: asyncio.Task[bytes],
        frames: Frames,
        *,
        headers: Mapping[str, str],
        close: Callable[[], Awaitable[None]],
        dialect: Dialect = TGI,
        keep_alive_s: float = KEEP_ALIVE_S,
    ) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({**headers, "cache-control": "no-cache", "x-accel-buffering": "no"})
        MutableHeaders(raw=self.raw_headers)["content-type"] = self.media_type
        self._first = first
        self._frames = frames
        self._close = close
        self._dialect = dialect
        self._keep_alive_s = keep_alive_s
        self._sent_s = 0.0
        self._gone = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        writer = asyncio.current_task()
        assert writer is not None
        watcher = asyncio.create_task(self._watch(receive, send, writer))
        try:
            await self._write(send)
        except asyncio.CancelledError:
            if not self._gone:
                raise
        finally:
            watcher.cancel()
            await _cancel(self._first)
            await self._frames.aclose()
            await self._close()

    async def _write(self, send: Send) -> None:
        now = asyncio.get_running_loop().time
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        if not self._first.done():
            await send({"type": "http.response.body", "body": KEEP_ALIVE, "more_body": True})
        try:
            self._sent_s = now()
            body = await self._first
            while True:
                await send({"type": "http.response.body", "body": body, "more_body": True})
                self._sent_s = now()
                body = await anext(self._frames)
        except StopAsyncIteration:
            pass
        except Exception as error:  # noqa: BLE001 - an edge: the answer has begun, all that is left is to say so
            body = error_frame(error, self._dialect)
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": self._dialect.end, "more_body": False})

    async def _watch(self, receive: Receive, send: Send, writer: asyncio.Task[None]) -> None:
        """Keep the connection alive while nothing is sent, and cancel the writer when the client leaves."""
        now = asyncio.get_running_loop().time
        self._sent_s = now()
        gone = asyncio.create_task(disconnected(receive))
        try:
            while not gone.done():
                idle_s = now() - self._sent_s
                if idle_s >= self._keep_alive_s:
                    await send({"type": "http.response.body", "body": KEEP_ALIVE, "more_body": True})
                    self._sent_s = now()
                    idle_s = 0.0
                await asyncio.wait({gone}, timeout=self._keep_alive_s - idle_s)
        finally:
            gone.cancel()
        self._gone = True
        writer.cancel()


async def _cancel(task: asyncio.Task[bytes]) -> None:
    task.cancel()
    with contextlib.suppress(BaseException):
        await task
