"""Spans as OpenTelemetry has them, and collectors that are not what they should be."""

from __future__ import annotations

import asyncio
import logging
import socket
import time

import pytest
from opentelemetry.trace import SpanKind, StatusCode
from recorded_spans import Recorder, events

from neuron_server import otlp
from neuron_server.errors import ConfigError, GenerationError
from neuron_server.tracing import parse_traceparent

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{SPAN}-00"


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def test_a_span_goes_on_the_trace_it_is_given_and_its_children_follow(recorder):
    span = recorder.tracer.start("outer", {"a": 1}, traceparent=TRACEPARENT, kind="server")
    span.child("inner", kind="client").end()
    span.rename("POST /x")
    span.end()
    outer, inner = recorder.one("POST /x"), recorder.one("inner")
    assert f"{outer.context.trace_id:032x}" == TRACE == f"{inner.context.trace_id:032x}"
    assert f"{outer.parent.span_id:016x}" == SPAN
    assert inner.parent.span_id == outer.context.span_id
    assert (outer.kind, inner.kind) == (SpanKind.SERVER, SpanKind.CLIENT)
    assert outer.attributes == {"a": 1}


def test_the_traceparent_of_a_span_names_it_and_says_sampled(recorder):
    span = recorder.tracer.start("a", traceparent=TRACEPARENT)  # whose sender did not sample
    parsed = parse_traceparent(span.traceparent)
    span.end()
    context = recorder.one("a").context
    assert (parsed.trace_id, parsed.span_id, parsed.flags) == (context.trace_id, context.span_id, 1)


@pytest.mark.parametrize("traceparent", [None, "", "nonsense", f"ff-{TRACE}-{SPAN}-01"])
def test_without_a_good_parent_a_new_trace_begins(recorder, traceparent):
    recorder.tracer.start("a", traceparent=traceparent).end()
    assert recorder.one("a").parent is None


def test_times_may_be_told_afterwards(recorder):
    now = time.monotonic()
    before = time.time_ns()
    recorder.tracer.start("a").child("b", started_s=now - 2.0).end(now - 0.5)
    span = recorder.one("b")
    assert span.end_time - span.start_time == pytest.approx(1.5e9, rel=0.01)
    assert before - span.end_time == pytest.approx(0.5e9, rel=0.1)


def test_an_exception_marks_its_span_and_says_why(recorder):
    with pytest.raises(GenerationError), recorder.tracer.start("a") as span, span.child("b"):
        raise GenerationError("boom")
    for name in "ab":
        status = recorder.one(name).status
        assert (status.status_code, status.description) == (StatusCode.ERROR, "boom")
    assert recorder.one("b").events[0].attributes["exception.type"] == "GenerationError"


@pytest.mark.parametrize("error", [asyncio.CancelledError, GeneratorExit])
def test_being_stopped_is_no_failure(recorder, error):
    with pytest.raises(error), recorder.tracer.start("a"):
        raise error
    span = recorder.one("a")
    assert (span.status.status_code, events(span)) == (StatusCode.UNSET, ["cancelled"])


def test_the_first_reason_stays_and_nothing_is_said_after_the_end(recorder, caplog):
    span = recorder.tracer.start("a")
    span.fail("first")
    span.fail("second")
    span.end()
    span.end()
    span.set({"x": 1})
    span.event("y")
    span.fail("third")
    assert recorder.one("a").status.description == "first"
    assert not recorder.one("a").attributes
    assert caplog.records == []


def test_a_malformed_endpoint_is_refused():
    with pytest.raises(ConfigError, match="--otlp-endpoint 'nonsense:port'"):
        otlp.connect("nonsense:port", "s", "p")


@pytest.mark.parametrize("listening", [False, True], ids=["nobody listens", "nobody answers"])
def test_a_collector_that_is_away_costs_spans_and_no_time(listening, caplog):
    """Ten times what the queue holds; the end waits for as long as it says and no longer."""
    caplog.set_level(logging.WARNING, logger="opentelemetry")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if listening:
            silent.listen()
        tracer = otlp.connect(f"http://127.0.0.1:{silent.getsockname()[1]}", "s", "p")
        start = time.perf_counter()
        slowest = 0.0
        for _ in range(20_000):
            began = time.perf_counter()
            tracer.start("a").end()
            slowest = max(slowest, time.perf_counter() - began)
        assert slowest < 2.0
        assert time.perf_counter() - start < 30
        start = time.perf_counter()
        tracer.close()
        assert time.perf_counter() - start < otlp.FLUSH_S + 1.0
    assert len(caplog.records) < 10
