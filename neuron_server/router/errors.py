"""The one table from the error tree to HTTP, and TGI's words for each kind."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple, TypeVar

import orjson
from starlette.responses import Response

from neuron_server.errors import (
    BackendError,
    ChatTemplateError,
    ConfigError,
    DeviceFailedError,
    GenerationError,
    GeneratorLostError,
    IncompleteGenerationError,
    ModelError,
    NeuronTgiError,
    NoChatTemplateError,
    OverloadedError,
    ToolError,
    UnavailableError,
    ValidationError,
)

#: Error class -> HTTP status; a subclass without its own row has its parent's.
STATUS: Mapping[type[NeuronTgiError], int] = MappingProxyType(
    {
        ValidationError: 422,
        ChatTemplateError: 422,
        ToolError: 422,
        OverloadedError: 429,
        UnavailableError: 503,
        GenerationError: 424,
        IncompleteGenerationError: 500,
        BackendError: 424,
        DeviceFailedError: 424,
        ConfigError: 500,
        ModelError: 500,
        NeuronTgiError: 500,
    }
)

#: What ``tgi_request_failure`` calls the kind (label ``err``); kinds without a row are not counted.
FAILURE_LABEL: Mapping[type[NeuronTgiError], str | None] = MappingProxyType(
    {
        ValidationError: "validation",
        ChatTemplateError: "template",
        NoChatTemplateError: None,
        OverloadedError: "overloaded",
        GenerationError: "generation",
        BackendError: "generation",
        DeviceFailedError: "generation",
        IncompleteGenerationError: "incomplete",
    }
)

V = TypeVar("V")


class ErrorReply(NamedTuple):
    """An error as a client sees it."""

    status: int
    error: str
    error_type: str

    @property
    def body(self) -> bytes:
        """TGI's error object."""
        return orjson.dumps({"error": self.error, "error_type": self.error_type})

    def response(self) -> Response:
        """An answer of its own: the error is known before anything was sent."""
        return Response(self.body, self.status, media_type="application/json")


def reply(error: Exception, *, streaming: bool = False) -> ErrorReply:
    """``error`` in TGI's words; ``streaming`` when the answer has begun already and this becomes an event.

    Anything that is not of the project's tree is a defect: 500, and nothing of its text is shown.
    """
    status = _nearest(STATUS, error, 500)
    if isinstance(error, ValidationError):
        return ErrorReply(status, f"Input validation error: {error}", error.error_type)
    if isinstance(error, ChatTemplateError):
        return ErrorReply(status, f"Template error: {error}", error.error_type)
    if isinstance(error, ToolError):
        return ErrorReply(status, f"Tool error: {error}", error.error_type)
    if isinstance(error, OverloadedError):
        return ErrorReply(status, "Model is overloaded", error.error_type)
    if isinstance(error, IncompleteGenerationError):
        if streaming:
            return ErrorReply(status, "Incomplete generation stream", "incomplete_generation_stream")
        return ErrorReply(status, "Incomplete generation", error.error_type)
    if isinstance(error, GenerationError | BackendError | DeviceFailedError):
        lost = isinstance(error, GeneratorLostError)
        cause = "Could not connect to Text Generation server" if lost else "Server error"
        text = f"Request failed during generation: {cause}: {error}"
        return ErrorReply(status, text, GenerationError.error_type)
    if isinstance(error, NeuronTgiError):
        return ErrorReply(status, str(error), error.error_type)
    return ErrorReply(status, "Internal server error", NeuronTgiError.error_type)


def openai_event(error: Exception) -> bytes:
    """An error in mid-stream on OpenAI's routes; TGI says 422 there for every kind."""
    return orjson.dumps({"error": {"message": reply(error, streaming=True).error, "http_status_code": 422}})


def failure_label(error: Exception) -> str | None:
    """The ``err`` label to count ``error`` under, or ``None``."""
    return _nearest(FAILURE_LABEL, error, None)


def _nearest(table: Mapping[type[NeuronTgiError], V], error: Exception, default: V) -> V:
    """The row of the nearest class."""
    return next((table[kind] for kind in type(error).__mro__ if kind in table), default)
