"""An OTLP collector that keeps what it gets: what a real one would have been sent."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2

#: For the programs' environment: spans leave soon.
QUICK = {"OTEL_BSP_SCHEDULE_DELAY": "50"}


@dataclass(frozen=True)
class Received:
    """One span. ``program`` is its instrumentation scope, ``service`` its resource's service.name."""

    span: trace_pb2.Span
    program: str
    service: str

    @property
    def attributes(self) -> dict:
        return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in self.span.attributes}

    @property
    def events(self) -> list[str]:
        return [event.name for event in self.span.events]


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """``with Collector() as collector:`` listens on ``collector.url``."""

    def __init__(self) -> None:
        self._arrived = threading.Condition()
        self._received: list[Received] = []
        self._server = grpc.server(ThreadPoolExecutor(2))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)
        self.url = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self) -> Collector:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(0).wait()

    def Export(self, request, context):  # noqa: N802 as generated
        found = [
            Received(span, scoped.scope.name, _service(resource.resource))
            for resource in request.resource_spans
            for scoped in resource.scope_spans
            for span in scoped.spans
        ]
        with self._arrived:
            self._received += found
            self._arrived.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    @property
    def received(self) -> list[Received]:
        with self._arrived:
            return list(self._received)

    def trace(self, trace_id: str, *names: str, timeout_s: float = 30.0) -> list[Received]:
        """All spans of a trace, once one of each of ``names`` (as often as it is named) has arrived."""
        deadline = time.monotonic() + timeout_s
        with self._arrived:
            while True:
                spans = [one for one in self._received if one.span.trace_id.hex() == trace_id]
                missing = [one.span.name for one in spans]
                if all(_taken(missing, name) for name in names):
                    return spans
                if not self._arrived.wait(max(deadline - time.monotonic(), 0.0)):
                    raise AssertionError(f"of {names} only these came: {[s.span.name for s in spans]}")


def _taken(names: list[str], name: str) -> bool:
    if name not in names:
        return False
    names.remove(name)
    return True


def _service(resource) -> str:
    return next(a.value.string_value for a in resource.attributes if a.key == "service.name")


def tree(spans: list[Received]) -> dict:
    """(program, name) -> children, as nested dictionaries; several of one name are numbered."""
    ids = {one.span.span_id for one in spans}

    def below(parent: bytes | None) -> dict:
        found: dict = {}
        for one in sorted(spans, key=lambda one: (one.span.start_time_unix_nano, one.span.name)):
            above = one.span.parent_span_id if one.span.parent_span_id in ids else None
            if above == parent:
                key, number = (one.program, one.span.name), 2
                while key in found:
                    key, number = (one.program, f"{one.span.name}#{number}"), number + 1
                found[key] = below(one.span.span_id)
        return found

    return below(None)
