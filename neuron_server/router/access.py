"""Who may ask: CORS and the API key, as plain ASGI around the application.

The order is TGI's: CORS is outermost and answers preflights for any path; the key is checked before a body is
read and before a wrong method is noticed.
"""

from __future__ import annotations

import hmac
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_VARY = "origin, access-control-request-method, access-control-request-headers"


class Cors:
    """Adds CORS headers to every answer and answers every ``OPTIONS`` itself.

    ``origins`` empty allows any origin; otherwise the request's origin is echoed if it is one of them.
    """

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        self._app = app
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        allowed = self._allowed(Headers(scope=scope).get("origin"))

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["vary"] = _VARY
                if allowed is not None:
                    headers["access-control-allow-origin"] = allowed
            await send(message)

        if scope["method"] == "OPTIONS":
            headers = {
                "access-control-allow-methods": "GET,POST",
                "access-control-allow-headers": "content-type",
            }
            await Response(headers=headers)(scope, receive, send_with_headers)
            return
        await self._app(scope, receive, send_with_headers)

    def _allowed(self, origin: str | None) -> str | None:
        if not self._origins:
            return "*"
        return origin if origin in self._origins else None


class ApiKey:
    """Answers 401 without a body unless ``Authorization`` is ``Bearer <key>``, ASCII letters in any case.

    ``protected`` are the paths that need the key. ``GET /`` is the health check and needs none.
    """

    def __init__(self, app: ASGIApp, key: str, protected: Collection[str]) -> None:
        self._app = app
        self._expected = f"bearer {key}".encode().lower()
        self._protected = frozenset(protected)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._needs_key(scope):
            given = Headers(scope=scope).get("authorization", "").encode("latin-1").lower()
            if not hmac.compare_digest(given, self._expected):  # whose time does not tell how much was right
                await Response(status_code=401)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _needs_key(self, scope: Scope) -> bool:
        if scope["path"] == "/" and scope["method"] in ("GET", "HEAD"):
            return False
        return scope["path"] in self._protected
