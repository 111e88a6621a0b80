"""``Tracer`` on OpenTelemetry: batches of spans to a collector, over gRPC.

Imported only by a program that was given ``--otlp-endpoint``: the SDK costs 0.3 s to import. OpenTelemetry's
own variables (``OTEL_BSP_*``, ``OTEL_EXPORTER_OTLP_HEADERS``, ``..._CERTIFICATE``, ``..._TIMEOUT``) have
their effect, endpoint and sampler excepted.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from types import TracebackType

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)
from opentelemetry.trace import Span as OtelSpan
from opentelemetry.trace import Tracer as OtelTracer

from neuron_server.tracing import Attributes, Kind, Span, parse_endpoint, parse_traceparent

#: How long the end of a program waits for its last spans to leave.
FLUSH_S = 1.5

#: A collector that is away is worth a line now and then, not one per attempt.
_COMPLAINT_INTERVAL_S = 60.0

_KINDS: dict[Kind, SpanKind] = {
    "internal": SpanKind.INTERNAL,
    "server": SpanKind.SERVER,
    "client": SpanKind.CLIENT,
}
_NONE: Attributes = {}


def connect(endpoint: str, service_name: str, program: str) -> OtlpTracer:
    """A tracer that exports to the collector at ``endpoint``; ``ConfigError`` when that is no address.

    Spans leave on a thread of the SDK's. It holds 2048 of them and drops the oldest beyond that, so a
    collector that is slow or away costs spans, never a request. ``program`` becomes the instrumentation
    scope: it tells router from generator, which share one ``service_name``, as in TGI.
    """
    address = parse_endpoint(endpoint)
    exporter_log = logging.getLogger("opentelemetry.exporter.otlp.proto.grpc.exporter")
    exporter_log.setLevel(logging.ERROR)  # what is a warning there is tried again
    exporter_log.addFilter(_NowAndThen())
    provider = new_provider(service_name)
    scheme = "https" if address.secure else "http"
    exporter = OTLPSpanExporter(f"{scheme}://{address.authority}", insecure=not address.secure)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return OtlpTracer(provider, program)


def new_provider(service_name: str) -> TracerProvider:
    """Samples everything, as TGI. It is nobody's default: FastAPI, for one, would export spans of its own."""
    return TracerProvider(
        sampler=ALWAYS_ON,
        resource=Resource.create({SERVICE_NAME: service_name}),
        shutdown_on_exit=False,  # it would wait for 30 s; ``close`` does not
    )


class OtlpTracer:
    """Spans of one program. See ``tracing.Tracer``."""

    enabled = True

    def __init__(self, provider: TracerProvider, program: str) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer(program)

    def start(
        self,
        name: str,
        attributes: Attributes = _NONE,
        *,
        traceparent: str | None = None,
        kind: Kind = "internal",
    ) -> Span:
        context = Context()  # empty: nothing may be found in an ambient one
        parent = parse_traceparent(traceparent) if traceparent else None
        if parent is not None:
            remote = SpanContext(parent.trace_id, parent.span_id, True, TraceFlags(parent.flags))
            context = set_span_in_context(NonRecordingSpan(remote), context)
        return _Span(self._tracer, self._tracer.start_span(name, context, _KINDS[kind], attributes))

    def close(self) -> None:
        closing = threading.Thread(target=self._provider.shutdown, daemon=True, name="flush-traces")
        closing.start()
        closing.join(FLUSH_S)


class _Span:
    """See ``tracing.Span``."""

    def __init__(self, tracer: OtelTracer, span: OtelSpan) -> None:
        self._tracer = tracer
        self._span = span
        self._failed = False

    @property
    def traceparent(self) -> str | None:
        context = self._span.get_span_context()
        if not context.is_valid:  # with OTEL_SDK_DISABLED
            return None
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def child(
        self,
        name: str,
        attributes: Attributes = _NONE,
        *,
        kind: Kind = "internal",
        started_s: float | None = None,
    ) -> Span:
        context = set_span_in_context(self._span, Context())
        began = None if started_s is None else _epoch_ns(started_s)
        return _Span(
            self._tracer,
            self._tracer.start_span(name, context, _KINDS[kind], attributes, start_time=began),
        )

    def rename(self, name: str) -> None:
        self._span.update_name(name)

    def set(self, attributes: Attributes) -> None:
        if self._span.is_recording():
            self._span.set_attributes(attributes)

    def event(self, name: str, attributes: Attributes = _NONE) -> None:
        if self._span.is_recording():
            self._span.add_event(name, attributes)

    def fail(self, error: BaseException | str) -> None:
        if self._failed or not self._span.is_recording():
            return
        self._failed = True
        message = str(error) or repr(error)
        self._span.set_status(Status(StatusCode.ERROR, message))
        if isinstance(error, BaseException):
            kind = type(error).__qualname__
            self._span.add_event("exception", {"exception.type": kind, "exception.message": message})

    def end(self, at_s: float | None = None) -> None:
        if self._span.is_recording():
            self._span.end(None if at_s is None else _epoch_ns(at_s))

    def __enter__(self) -> Span:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, (asyncio.CancelledError, GeneratorExit)):
            self.event("cancelled")  # somebody else's decision, and no failure of this work
        elif error is not None:
            self.fail(error)
        self.end()


def _epoch_ns(monotonic_s: float) -> int:
    return time.time_ns() - int((time.monotonic() - monotonic_s) * 1e9)


class _NowAndThen(logging.Filter):
    """Lets one record pass every ``_COMPLAINT_INTERVAL_S`` seconds."""

    def __init__(self) -> None:
        super().__init__()
        self._next_s = 0.0

    def filter(self, record: logging.LogRecord) -> bool:  # noqa: ARG002
        now = time.monotonic()
        if now < self._next_s:
            return False
        self._next_s = now + _COMPLAINT_INTERVAL_S
        return True
