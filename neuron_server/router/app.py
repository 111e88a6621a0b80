"""The application: routes, error replies, access, and what a GET tells."""

from __future__ import annotations

import logging
from importlib import metadata

import orjson
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Route
from starlette.types import ASGIApp

from neuron_server.errors import NeuronTgiError
from neuron_server.router import tgi
from neuron_server.router.access import ApiKey, Cors
from neuron_server.router.disconnect import ClientGoneError
from neuron_server.router.errors import reply
from neuron_server.router.json_body import BodyRefusedError
from neuron_server.router.service import READY, GenerationService

logger = logging.getLogger(__name__)


def build_app(service: GenerationService) -> ASGIApp:
    """The ASGI application around ``service``; it can answer before the service is open."""
    app = FastAPI(
        title="neuronx-tgi", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False
    )
    tgi.add_routes(app, service)
    protected = {route.path for route in app.routes if isinstance(route, Route)}
    _add_status_routes(app, service)
    _answer_errors(app)
    key = service.config.api_key
    guarded: ASGIApp = app if key is None else ApiKey(app, key, protected)
    return Cors(guarded, service.config.cors_allow_origin)


def _add_status_routes(app: FastAPI, service: GenerationService) -> None:
    async def health() -> Response:
        phase = service.phase
        if phase == READY:
            return Response()
        content = {"error": "unhealthy", "error_type": "healthcheck", "phase": phase}
        return Response(orjson.dumps(content), 503, media_type="application/json")

    async def info() -> Response:
        return Response(orjson.dumps(_info(service)), media_type="application/json")

    async def metrics() -> Response:
        if service.phase == READY:
            service.metrics.occupancy(service.generators.queued, service.generators.running)
        return Response(service.metrics.render(), media_type="text/plain; charset=utf-8")

    for path, endpoint in (
        ("/", health),
        ("/health", health),
        ("/ping", health),
        ("/info", info),
        ("/metrics", metrics),
    ):
        app.add_api_route(path, endpoint, methods=["GET", "HEAD"])


def _info(service: GenerationService) -> dict[str, object]:
    """TGI's fourteen keys in its order, then ours (with the names TGI had for them through 2.2)."""
    config, backend = service.config, service.generators.info
    return {
        "model_id": config.model_id,
        "model_sha": config.revision,
        "model_pipeline_tag": None,
        "max_concurrent_requests": config.max_concurrent_requests,
        "max_best_of": config.max_best_of,
        "max_stop_sequences": config.max_stop_sequences,
        "max_input_tokens": config.max_input_tokens,
        "max_total_tokens": config.max_total_tokens,
        "validation_workers": config.validation_workers,
        "max_client_batch_size": config.max_client_batch_size,
        "router": "text-generation-router",
        "version": metadata.version("neuronx-tgi"),
        "sha": None,
        "docker_label": None,
        "model_dtype": None if backend is None else backend.dtype,
        "model_device_type": None if backend is None else backend.device,
        "max_batch_size": config.batch_size,
        "max_batch_total_tokens": config.batch_size * config.max_total_tokens,
        "replicas": len(config.shard_uds_paths),
    }


def _answer_errors(app: FastAPI) -> None:
    """Every way a route can fail, as a response."""

    async def refused_body(_: Request, error: Exception) -> Response:
        status = error.status if isinstance(error, BodyRefusedError) else 400
        return Response(str(error), status, media_type="text/plain; charset=utf-8")

    async def known(_: Request, error: Exception) -> Response:
        answer = reply(error)
        return Response(answer.body, answer.status, media_type="application/json")

    async def no_route(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 404
        if status != 405:
            return Response(status_code=status)
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
