"""A request on raw ASGI, for tests that look at single messages or leave in the middle."""

from __future__ import annotations

import asyncio
import json


class Wire:
    """One HTTP request on raw ASGI: what was sent so far, and a client that can leave."""

    def __init__(self, app, path: str, body: dict) -> None:
        self.sent: asyncio.Queue[dict] = asyncio.Queue()
        self._incoming: asyncio.Queue[dict] = asyncio.Queue()
        self._incoming.put_nowait(
            {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}
        )
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "scheme": "http",
            "headers": [(b"content-type", b"application/json")],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
        }
        self.task = asyncio.create_task(app(scope, self._incoming.get, self.sent.put))

    def leave(self) -> None:
        self._incoming.put_nowait({"type": "http.disconnect"})

    async def body(self) -> bytes:
        message = await self.sent.get()
        return message.get("body", b"") if message["type"] == "http.response.body" else await self.body()
