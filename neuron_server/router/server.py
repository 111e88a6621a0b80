"""uvicorn as this program uses it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from neuron_server.router.protocol import Protocol

#: Seconds that answers whose generation is over get to reach their clients when the server stops.
FLUSH_S = 5

#: Longer than any common client keeps an idle connection, so that the client is the one to close it.
KEEP_ALIVE_S = 75


class Server(uvicorn.Server):
    """A uvicorn server that leaves signals to the program: after one it must go on listening, to say 503."""

    def __init__(self, app: ASGIApp) -> None:
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
        super().__init__(
            uvicorn.Config(
                app,
                http=Protocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=FLUSH_S,
            )
        )

        #: Set once requests are answered.
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and tell."""
        await super().startup(sockets=sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield
