"""The span of a whole HTTP request, from its first header to the last byte of its answer."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from neuron_server.router.handler import Trace
from neuron_server.tracing import Span, Tracer


class HttpSpans:
    """Traces every POST; a message of the answer is passed on as it comes.

    TGI makes this span at a level that its usual log filter leaves out. Here it is made whenever traces are
    exported: without it a trace would say neither which route was called nor how the answer ended. What GET
    asks is answered from memory, mostly to probes and scrapers, and would bury the traces of generations.
    """

    def __init__(self, app: ASGIApp, tracer: Tracer) -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        span = self._tracer.start(
            "HTTP request", _asked(scope, headers), traceparent=headers.get("traceparent"), kind="server"
        )
        trace = Trace(span)
        trace.put(scope)
        status: int | None = None

        async def send_and_look(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        failure: BaseException | str | None = None
        try:
            await self._app(scope, receive, send_and_look)
        except BaseException as error:
            failure = error
            raise
        finally:
            failure = failure or _failure(status)
            _answered(span, scope, status, failure)
            trace.end(failure)


def _asked(scope: Scope, headers: Headers) -> dict[str, str]:
    return {
        "http.request.method": scope["method"],
        "network.protocol.version": scope["http_version"],
        "server.address": headers.get("host", ""),
        "user_agent.original": headers.get("user-agent", ""),
        "url.path": scope["path"],
        "url.query": scope["query_string"].decode("latin-1"),
        "url.scheme": scope["scheme"],
        "span.type": "web",
    }


def _failure(status: int | None) -> str | None:
    if status is None:
        return "no answer was sent"
    return f"HTTP {status}" if status >= 400 else None


def _answered(span: Span, scope: Scope, status: int | None, failure: BaseException | str | None) -> None:
    """The route is known only now. A client's mistake is no failure of the server: 5xx is."""
    route = getattr(scope.get("route"), "path", None)
    span.rename(f"{scope['method']} {route}" if route else scope["method"])
    if route:
        span.set({"http.route": route})
    if status is not None:
        span.set({"http.response.status_code": status})
    if failure is not None and (status is None or status >= 500 or not isinstance(failure, str)):
        span.set({"exception.message": str(failure)})
        span.fail(failure)
