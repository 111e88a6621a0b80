"""The API description at ``/api-doc/openapi.json``, written from the classes that bodies are read with."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from fastapi import FastAPI, Response
from pydantic import BaseModel

from neuron_server.router import openapi_schema as answers
from neuron_server.router.identity import version
from neuron_server.router.openai_schema import ChatRequest, CompletionRequest
from neuron_server.router.openapi_dialect import REF, describe
from neuron_server.router.tgi_schema import CompatGenerateRequest, GenerateRequest

PATH = "/api-doc/openapi.json"

JSON, EVENTS, TEXT = "application/json", "text/event-stream", "text/plain"

#: TGI's: generated clients name a class after it.
_TAG = "Text Generation Inference"

_ABOUT = """\
A text-generation server with the API of TGI, on AWS Inferentia2 or any CPU.

Every POST route reads `application/json` and may also answer, in plain text: 400 (not JSON), 413 (too large),
415 (another content type) or 422 (JSON that does not fit the schema). Without the API key, where one is set,
the routes that generate answer 401. While the server starts or drains they answer 503 with an error object.
A stream that is refused has the same status and error object as an answer that is refused; one that fails
later ends with an error event."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path. ``answer`` maps content types to what a 200 holds there."""

    path: str
    method: str
    id: str
    summary: str
    body: type[BaseModel] | None = None
    answer: Mapping[str, Any] = field(default_factory=dict)  # a model, list[model] or str: no common type
    errors: Mapping[int, str] = field(default_factory=dict)


_FAILURES = {
    422: "The request breaks a rule; the message names it",
    424: "The generation failed",
    429: "All permits are taken: try again later",
    500: "The generation ended before it was finished",
}

OPERATIONS: Sequence[Operation] = (
    Operation(
        "/",
        "post",
        "compat_generate",
        "Generate, as a whole or (with stream) as a stream of tokens",
        CompatGenerateRequest,
        {JSON: list[answers.GenerateResponse], EVENTS: answers.StreamResponse},
        _FAILURES,
    ),
    Operation(
        "/chat_tokenize",
        "post",
        "get_chat_tokenize",
        "The prompt that a chat becomes, and its tokens",
        ChatRequest,
        {JSON: answers.ChatTokenizeResponse},
        {404: "The chat cannot be tokenized"},
    ),
    Operation(
        "/generate",
        "post",
        "generate",
        "Generate text",
        GenerateRequest,
        {JSON: answers.GenerateResponse},
        _FAILURES,
    ),
    Operation(
        "/generate_stream",
        "post",
        "generate_stream",
        "Generate text as a stream of tokens",
        GenerateRequest,
        {EVENTS: answers.StreamResponse},
        _FAILURES,
    ),
    Operation(
        "/health",
        "get",
        "health",
        "Whether the server can generate",
        errors={503: "It cannot, or not yet"},
    ),
    Operation("/info", "get", "get_model_info", "The model and the limits", answer={JSON: answers.Info}),
    Operation(
        "/invocations",
        "post",
        "sagemaker_compatibility",
        "SageMaker's route: generate, chat or completions, as the form of the body says",
        answers.SagemakerRequest,
        {JSON: answers.SagemakerResponse, EVENTS: answers.SagemakerStreamResponse},
        _FAILURES,
    ),
    Operation("/metrics", "get", "metrics", "Metrics for Prometheus", answer={TEXT: str}),
    Operation(
        "/tokenize",
        "post",
        "tokenize",
        "The tokens of a text",
        GenerateRequest,
        {JSON: answers.TokenizeResponse},
        {404: "The model has no fast tokenizer"},
    ),
    Operation(
        "/v1/chat/completions",
        "post",
        "chat_completions",
        "Answer a chat, in OpenAI's manner",
        ChatRequest,
        {JSON: answers.ChatCompletion, EVENTS: answers.ChatCompletionChunk},
        _FAILURES,
    ),
    Operation(
        "/v1/completions",
        "post",
        "completions",
        "Continue one or more prompts, in OpenAI's manner",
        CompletionRequest,
        {JSON: answers.CompletionFinal, EVENTS: answers.Chunk},
        _FAILURES,
    ),
    Operation(
        "/v1/models",
        "get",
        "openai_get_model_info",
        "The served model, in OpenAI's manner",
        answer={JSON: answers.ModelList},
        errors={404: "There is no such model"},
    ),
)


def add_routes(app: FastAPI) -> None:
    """Add the route of the description to ``app``."""

    async def description() -> Response:
        return Response(document(), media_type=JSON)

    app.add_api_route(PATH, description, methods=["GET", "HEAD"])


@functools.cache
def document() -> bytes:
    """The description as JSON. Written when first asked for, a few hundredths of a second."""
    forms = [form for operation in OPERATIONS for form in _forms(operation)]
    schemas, components = describe([*forms, answers.ErrorResponse, answers.Completion])
    schema_of = dict(zip(map(repr, forms), schemas, strict=False))
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation, schema_of)
    return orjson.dumps(
        {
            "openapi": "3.0.3",
            "info": {
                "title": "neuronx-tgi",
                "description": _ABOUT,
                "license": {"name": "Apache 2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
                "version": version(),
            },
            "paths": paths,
            "components": {"schemas": components},
            "tags": [{"name": _TAG}],
        }
    )


def _forms(operation: Operation) -> list[Any]:
    body = [] if operation.body is None else [operation.body]
    return [*body, *operation.answer.values()]


def _operation(operation: Operation, schema_of: Mapping[str, Any]) -> dict[str, Any]:
    written: dict[str, Any] = {"tags": [_TAG], "operationId": operation.id, "summary": operation.summary}
    if operation.body is not None:
        content = {JSON: {"schema": schema_of[repr(operation.body)]}}
        written["requestBody"] = {"content": content, "required": True}
    responses: dict[str, Any] = {"200": {"description": "The answer"}}
    if operation.answer:
        responses["200"]["content"] = {
            content_type: {"schema": schema_of[repr(form)]} for content_type, form in operation.answer.items()
        }
    for status, reason in operation.errors.items():
        error = {"schema": {"$ref": REF + answers.ErrorResponse.__name__}}
        responses[str(status)] = {"description": reason, "content": {JSON: error}}
    return {**written, "responses": responses}
