"""Work that ends when its client leaves."""

from __future__ import annotations

import asyncio
import sys
from types import TracebackType

from starlette.types import Receive


class ClientGoneError(Exception):
    """The client disconnected; there is nobody to answer."""


class WhileConnected:
    """``async with WhileConnected(receive):`` cancels its block when the client disconnects.

    The block's ``finally`` clauses run, then ``ClientGoneError`` is raised. The body must have been read.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._gone = False

    async def __aenter__(self) -> None:
        task = self._task = asyncio.current_task()
        assert task is not None
        self._watcher = asyncio.create_task(self._watch(task))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watcher.cancel()
        if self._gone and isinstance(error, asyncio.CancelledError):
            if sys.version_info >= (3, 11) and self._task is not None:
                self._task.uncancel()  # the request was the watcher's and has been met
            raise ClientGoneError from None

    async def _watch(self, task: asyncio.Task[object]) -> None:
        await disconnected(self._receive)
        self._gone = True
        task.cancel()


async def disconnected(receive: Receive) -> None:
    """Until the client is gone. The body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
