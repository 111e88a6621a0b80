"""A tracer whose spans stay in memory, and what a test asks of them."""

from __future__ import annotations

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from neuron_server.otlp import OtlpTracer, new_provider


class Recorder:
    """``tracer`` to be given to what is tested; the spans that have ended are here."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        provider = new_provider("test")
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = OtlpTracer(provider, "test")

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self._exporter.get_finished_spans()

    def tree(self) -> dict:
        """Name -> the same of its children; several of one name as ``name#2``. By their beginnings."""
        known = {span.context.span_id for span in self.spans}
        return self._below(None, known)

    def _below(self, parent: int | None, known: set[int]) -> dict:
        found: dict[str, dict] = {}
        for span in sorted(self.spans, key=lambda span: span.start_time):
            above = span.parent.span_id if span.parent is not None and span.parent.span_id in known else None
            if above == parent:
                name, number = span.name, 2
                while name in found:
                    name, number = f"{span.name}#{number}", number + 1
                found[name] = self._below(span.context.span_id, known)
        return found

    def one(self, name: str) -> ReadableSpan:
        (span,) = self.named(name)
        return span

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name == name]


def events(span: ReadableSpan) -> list[str]:
    return [event.name for event in span.events]
