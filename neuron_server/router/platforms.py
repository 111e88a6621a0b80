"""Amazon SageMaker's and Google Vertex AI's ways to ask: their routes around ours."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Annotated

from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute

from neuron_server.errors import NeuronTgiError, OverloadedError, UnavailableError
from neuron_server.router.body import read, read_as
from neuron_server.router.chat import chat
from neuron_server.router.completions import complete
from neuron_server.router.disconnect import WhileConnected
from neuron_server.router.errors import ErrorReply
from neuron_server.router.generation import Call
from neuron_server.router.handler import Handler, begin
from neuron_server.router.json_body import Document
from neuron_server.router.json_reply import dump
from neuron_server.router.openai_schema import ChatRequest, CompletionRequest
from neuron_server.router.prompt import prepare_chat
from neuron_server.router.serde import FailFast, Schema, Untagged, deserialize_untagged
from neuron_server.router.service import GenerationService
from neuron_server.router.tgi import compat
from neuron_server.router.tgi_schema import CompatGenerateRequest, GenerateParameters

#: Vertex AI says by environment under which paths it will ask: variable -> (our path, its methods).
_ALIASES = {
    "AIP_PREDICT_ROUTE": ("/vertex", ["POST"]),
    "AIP_HEALTH_ROUTE": ("/health", ["GET", "HEAD"]),
}

#: TGI's answers on ``/vertex``: whatever happened to a generation, the platform gets one word for it.
_NO_INSTANCES = ErrorReply(422, "Input validation error", "Input validation error")
_INCOMPLETE = ErrorReply(500, "Incomplete generation", "Incomplete generation")


class TextInstance(Schema):
    """One prompt; of ``parameters`` only ``max_new_tokens`` and ``seed`` have an effect, as in TGI."""

    inputs: str
    parameters: GenerateParameters | None = None


class VertexRequest(Schema):
    """Body of ``/vertex``."""

    instances: Annotated[list[Annotated[TextInstance | ChatRequest, Untagged("VertexInstance")]], FailFast()]


def add_routes(app: FastAPI, service: GenerationService) -> None:
    """Add the routes to ``app``; all of them generate."""

    @app.post("/invocations")
    async def sagemaker_compatibility(request: Request) -> Response:
        begin(request, "sagemaker_compatibility", tells_parameters=False)
        body = await read_as(request, _sagemaker_body, service.config.payload_limit)
        if isinstance(body, ChatRequest):
            return await chat(service, request, body)
        if isinstance(body, CompletionRequest):
            return await complete(service, request, body)
        assert isinstance(body, CompatGenerateRequest)
        return await compat(service, request, body)

    @app.post("/vertex")
    async def vertex_compatibility(request: Request) -> Response:
        handler = begin(request, "vertex_compatibility", tells_parameters=False)
        body = await read(request, VertexRequest, service.config.payload_limit)
        async with WhileConnected(request.receive):
            return await _predict(service, body, handler)


def add_aliases(app: FastAPI, environ: Mapping[str, str] = os.environ) -> None:
    """Add the paths that Vertex AI named, if it did, to an ``app`` that has ours; a path of ours stays."""
    ours = {
        (route.path, method): route.endpoint
        for route in app.routes
        if isinstance(route, APIRoute)
        for method in route.methods or ()
    }
    for variable, (path, methods) in _ALIASES.items():
        alias = "/" + environ.get(variable, "").strip().lstrip("/")
        if (alias, methods[0]) not in ours:  # nor is one without a name: "/" has both methods
            app.add_api_route(alias, ours[path, methods[0]], methods=methods)


def _sagemaker_body(document: Document) -> Schema:
    """The first kind of body that fits; TGI tries them in this order."""
    kinds = (CompatGenerateRequest, ChatRequest, CompletionRequest)
    return deserialize_untagged("SagemakerRequest", kinds, document)


# -- Vertex AI -----------------------------------------------------------------------------------------------


async def _predict(service: GenerationService, body: VertexRequest, handler: Handler) -> Response:
    started_s = time.monotonic()
    service.metrics.count.inc()  # as TGI: the request, besides each of its generations
    if not body.instances:
        return _NO_INSTANCES.response()
    if len(body.instances) > service.config.max_concurrent_requests:  # not worth a template each
        service.failed(OverloadedError("no permits available"))
        return _INCOMPLETE.response()
    calls = [await _call(service, instance, started_s, handler) for instance in body.instances]
    try:
        finished = await service.generate_all(calls)
    except UnavailableError:
        raise  # nothing was generated yet, and the platform may ask another replica
    except NeuronTgiError:
        return _INCOMPLETE.response()
    texts = {position: answer.ending.generated_text for position, answer in finished}
    predictions = [texts[position] for position in range(len(calls))]
    return Response(dump({"predictions": predictions}), media_type="application/json")


async def _call(
    service: GenerationService, instance: TextInstance | ChatRequest, started_s: float, handler: Handler
) -> Call:
    """What an instance asks for; raises what refuses a chat before its generation."""
    if isinstance(instance, ChatRequest):
        prepared = await prepare_chat(service, instance)
        return Call(
            prepared.inputs, prepared.parameters, started_s, add_special_tokens=False, handler=handler
        )
    given = instance.parameters or GenerateParameters()
    parameters = GenerateParameters(
        do_sample=True, max_new_tokens=given.max_new_tokens, seed=given.seed, details=True
    )
    return Call(instance.inputs, parameters, started_s, handler=handler)
