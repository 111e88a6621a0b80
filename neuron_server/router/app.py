"""The application: all routes, who may use which, and every way they can fail."""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Route
from starlette.types import ASGIApp

from neuron_server.errors import NeuronTgiError
from neuron_server.router import chat, completions, docs, openapi, platforms, status, tgi, tokenize
from neuron_server.router.access import ApiKey, Cors
from neuron_server.router.disconnect import ClientGoneError
from neuron_server.router.errors import reply
from neuron_server.router.json_body import BodyRefusedError
from neuron_server.router.service import GenerationService

logger = logging.getLogger(__name__)


def build_app(service: GenerationService) -> ASGIApp:
    """The ASGI application around ``service``; it can answer before the service is open."""
    app = FastAPI(
        title="neuronx-tgi", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False
    )
    for routes in (tgi, chat, completions, tokenize, platforms):
        routes.add_routes(app, service)
    protected = {route.path for route in app.routes if isinstance(route, Route)}
    # open as in TGI, whose key guards what generates: what only reads, and what a platform's own door guards
    status.add_routes(app, service)
    tokenize.add_open_routes(app, service)
    openapi.add_routes(app)
    docs.add_routes(app)
    platforms.add_aliases(app)
    _answer_errors(app)
    key = service.config.api_key
    guarded: ASGIApp = app if key is None else ApiKey(app, key, protected)
    return Cors(guarded, service.config.cors_allow_origin)


def _answer_errors(app: FastAPI) -> None:
    """Every way a route can fail, as a response."""

    async def refused_body(_: Request, error: Exception) -> Response:
        code = error.status if isinstance(error, BodyRefusedError) else 400
        return Response(str(error), code, media_type="text/plain; charset=utf-8")

    async def known(_: Request, error: Exception) -> Response:
        return reply(error).response()

    async def no_route(request: Request, error: Exception) -> Response:
        code = error.status_code if isinstance(error, HTTPException) else 404
        if code != 405:
            return Response(status_code=code)
        return Response(status_code=405, headers={"allow": _allowed_methods(app, request.url.path)})

    async def gone(_: Request, __: Exception) -> Response:
        return Response(status_code=499)  # nobody reads it

    async def defect(request: Request, error: Exception) -> Response:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return await known(request, error)

    app.add_exception_handler(BodyRefusedError, refused_body)
    app.add_exception_handler(NeuronTgiError, known)
    app.add_exception_handler(HTTPException, no_route)
    app.add_exception_handler(ClientGoneError, gone)
    app.add_exception_handler(ClientDisconnect, gone)  # in the middle of its body
    app.add_exception_handler(Exception, defect)


def _allowed_methods(app: FastAPI, path: str) -> str:
    """All methods of all routes of ``path``: a path may have one route for GET and one for POST."""
    methods = {
        m
        for route in app.routes
        if isinstance(route, Route) and route.path == path
        for m in route.methods or ()
    }
    return ",".join(sorted(methods))
