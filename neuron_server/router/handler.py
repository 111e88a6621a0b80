"""A route's handler at work: what its span and its log lines say of the request."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args, get_type_hints

import orjson
from starlette.requests import Request
from starlette.types import Scope

from neuron_server import logs
from neuron_server.router.answer import Ending
from neuron_server.router.durations import human
from neuron_server.router.tgi_schema import GenerateParameters
from neuron_server.tracing import NO_SPAN, Span

#: Where a request's ASGI scope holds its ``Trace``, if it is traced, and its innermost ``Handler``.
_TRACE = "neuronx_tgi.trace"
_HANDLER = "neuronx_tgi.handler"

#: What TGI calls the place of these lines; log pipelines filter by it.
_TARGET = "text_generation_router::server"

#: A grammar of a megabyte is cut in logs and spans after so many characters.
_MAX_CHARS = 4096


class Trace:
    """The HTTP span of one request, and the spans of its handlers, which end with the response."""

    def __init__(self, span: Span) -> None:
        self.span = span
        self._handlers: list[Span] = []

    def put(self, scope: Scope) -> None:
        """Make ``begin`` find it."""
        scope[_TRACE] = self

    def add(self, span: Span) -> Span:
        """A handler's span."""
        self._handlers.append(span)
        return span

    def end(self, failure: BaseException | str | None) -> None:
        """Everything is sent, or failed: end all spans, the innermost first."""
        for span in reversed(self._handlers):
            if failure is not None:
                span.fail(failure)
            span.end()
        self.span.end()


@dataclass(frozen=True, slots=True)
class Handler:
    """A handler by TGI's name for it (``generate``), inside those that called it (``compat_generate``).

    ``tells_parameters``: whether TGI's handler of that name puts the parameters into its log line.
    """

    name: str
    span: Span = NO_SPAN
    tells_parameters: bool = True
    within: tuple[str, ...] = ()

    def began(self, parameters: GenerateParameters) -> None:
        """What is asked for is known."""
        if self.span is not NO_SPAN and self.tells_parameters:
            self.span.set({"parameters": debug_text(parameters)})

    def succeeded(self, ending: Ending) -> None:
        """A generation of this handler ended well; of several, the last one's times stay on the span."""
        if self.span is not NO_SPAN:
            self.span.set(_times(ending))

    def log_extra(self, parameters: GenerateParameters, ending: Ending | None = None) -> dict[str, object]:
        """The ``extra`` of a log line that belongs to this handler."""
        own: dict[str, str] = {}
        if self.tells_parameters:
            own["parameters"] = logs.Bare(debug_text(parameters))
        if ending is not None:
            own.update(_times(ending))
        outer: list[tuple[str, dict[str, str]]] = [(name, {}) for name in self.within]
        return logs.inside((*outer, (self.name, own)), _TARGET)


#: A handler of no HTTP request.
UNTRACED = Handler("generate")


def begin(request: Request, name: str, *, tells_parameters: bool = True) -> Handler:
    """To be called first in a handler, or where one handler hands the request to another one.

    Its span is below the outer handler's, or the HTTP span, and ends with the response.
    """
    trace: Trace | None = request.scope.get(_TRACE)
    outer: Handler | None = request.scope.get(_HANDLER)
    span = NO_SPAN
    if trace is not None:
        span = trace.add((trace.span if outer is None else outer.span).child(name))
    within = () if outer is None else (*outer.within, outer.name)
    handler = request.scope[_HANDLER] = Handler(name, span, tells_parameters, within)
    return handler


def _times(ending: Ending) -> dict[str, str]:
    """As TGI records them on its spans: durations in words, the seed as Rust prints an option."""
    total_s, validation_s, queue_s, inference_s = ending.timings
    return {
        "total_time": human(total_s),
        "validation_time": human(validation_s),
        "queue_time": human(queue_s),
        "inference_time": human(inference_s),
        "time_per_token": human(ending.time_per_token_s),
        "seed": "None" if ending.seed is None else f"Some({ending.seed})",
    }


# -- parameters, as Rust's Debug prints them -----------------------------------------------------------------


def debug_text(parameters: GenerateParameters) -> str:
    """``GenerateParameters { best_of: None, temperature: Some(0.5), ... }``, the form TGI logs."""
    options = _options(type(parameters))
    fields = (
        f"{name}: {_debug(getattr(parameters, name), option=option)}" for name, option in options.items()
    )
    text = f"GenerateParameters {{ {', '.join(fields)} }}"
    return text if len(text) <= _MAX_CHARS else text[:_MAX_CHARS] + "…"


@cache
def _options(model: type[GenerateParameters]) -> dict[str, bool]:
    """The fields in their order; whether each may be absent."""
    hints = get_type_hints(model)
    return {name: type(None) in get_args(hints[name]) for name in model.model_fields}


def _debug(value: Any, *, option: bool) -> str:  # Any: a grammar holds any JSON value
    if value is None:
        return "None"
    if isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, float):
        text = str(value) if math.isfinite(value) else str(value).replace("nan", "NaN")
    elif isinstance(value, int):
        text = str(value)
    else:
        text = orjson.dumps(value, default=_dump).decode()  # quotes and escapes: a line stays a line
    return f"Some({text})" if option else text


def _dump(value: Any) -> Any:
    return value.model_dump(mode="json")
