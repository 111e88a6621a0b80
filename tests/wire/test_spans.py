"""The generator's half of a trace, made from what passes between the wire and the engine."""

from __future__ import annotations

import asyncio

import pytest
from opentelemetry.trace import SpanKind, StatusCode
from recorded_spans import Recorder, events
from scripted_source import ScriptedSource

from neuron_server.errors import DeviceFailedError, GenerationError, GeneratorLostError
from neuron_server.event import FinishReason, TokenEvent
from neuron_server.request import GenerationRequest
from neuron_server.session import Pass
from neuron_server.tracing import NO_SPAN
from neuron_server.wire.client import GeneratorClient
from neuron_server.wire.service import serving
from neuron_server.wire.spans import TracedSource, submission

NAME = "/neuronx_tgi.v1.Generator/Generate"
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{SPAN}-01"
REQUEST = GenerationRequest((1, 2, 3, 4), 3, 8, traceparent=TRACEPARENT)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def traced(recorder) -> tuple[TracedSource, ScriptedSource]:
    source = ScriptedSource()
    return TracedSource(source, recorder.tracer), source


async def run(session, scripted, *steps) -> list:
    """Everything that ``steps`` (each a list of events of request 1) become."""
    for events_ in steps:
        scripted.emit([(1, event) for event in events_])
    scripted.close()
    return [step async for step in session.steps()]


def last(token: int = 9) -> TokenEvent:
    return TokenEvent(token, finish=FinishReason.LENGTH)


async def test_a_request_is_a_server_span_with_waiting_prefill_and_one_decode(traced, recorder):
    session = traced[0].open_session()
    session.submit(1, REQUEST)
    steps = await run(session, traced[1].session, [TokenEvent(5, queue_s=0.0)], [TokenEvent(6)], [last()])
    assert [event.token_id for step in steps for _, event in step.tokens] == [5, 6, 9]
    assert recorder.tree() == {NAME: {"queued": {}, "prefill": {}, "decode": {}}}
    span = recorder.one(NAME)
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE, SPAN)
    assert span.kind is SpanKind.SERVER
    assert span.attributes == {
        "rpc.system": "grpc",
        "rpc.service": "neuronx_tgi.v1.Generator",
        "rpc.method": "Generate",
        "net.transport": "unix",
        "rpc.grpc.status_code": 0,
        "prompt_tokens": 3,
        "resumed_tokens": 1,
        "max_new_tokens": 8,
        "generated_tokens": 3,
        "finish_reason": "length",
    }
    assert recorder.one("prefill").attributes == {"tokens": 4}
    assert recorder.one("decode").attributes == {"tokens": 2}


async def test_the_three_stretches_follow_each_other(traced, recorder):
    session = traced[0].open_session()
    session.submit(1, REQUEST)
    await run(session, traced[1].session, [TokenEvent(5, queue_s=3600.0)], [last()])
    queued, prefill, decode = (recorder.one(name) for name in ("queued", "prefill", "decode"))
    for before, after in ((queued, prefill), (prefill, decode)):
        assert abs(before.end_time - after.start_time) < 1e6  # whatever the engine's clock says


async def test_a_prompt_of_one_token_has_no_prefill(traced, recorder):
    session = traced[0].open_session()
    session.submit(1, GenerationRequest((1,), 1, 8, traceparent=TRACEPARENT))
    await run(session, traced[1].session, [TokenEvent(5, queue_s=0.0)], [last()])
    assert recorder.tree() == {NAME: {"queued": {}, "decode": {}}}
    assert recorder.one("decode").attributes == {"tokens": 2}


async def test_the_first_token_may_be_the_last(traced, recorder):
    session = traced[0].open_session()
    session.submit(1, REQUEST)
    await run(session, traced[1].session, [last()])
    assert recorder.tree() == {NAME: {"queued": {}, "prefill": {}}}


@pytest.mark.parametrize(("error", "code"), [(GenerationError("boom"), 13), (DeviceFailedError("dead"), 14)])
async def test_an_error_ends_and_marks_it(traced, recorder, error, code):
    session = traced[0].open_session()
    session.submit(1, REQUEST)
    traced[1].session.emit(errors=[(1, error)])
    await run(session, traced[1].session)
    span = recorder.one(NAME)
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, str(error))
    assert span.attributes["rpc.grpc.status_code"] == code


@pytest.mark.parametrize("how", ["cancel", "close"])
async def test_a_request_that_is_taken_back_ends_as_cancelled(traced, recorder, how):
    session = traced[0].open_session()
    session.submit(1, REQUEST)
    session.cancel(1) if how == "cancel" else session.close()
    span = recorder.one(NAME)
    assert events(span) == ["cancelled"]
    assert span.attributes["rpc.grpc.status_code"] == 1
    assert span.status.status_code is StatusCode.UNSET
    assert traced[1].session.cancelled == ([1] if how == "cancel" else [])


async def test_a_request_without_a_trace_passes_as_it_is(traced, recorder):
    session = traced[0].open_session()
    request = GenerationRequest((1, 2), 2, 8)
    session.submit(1, request)
    assert traced[1].session.open == {1: request}
    await run(session, traced[1].session, [last()])
    assert recorder.spans == ()


async def test_steps_pass_whole_and_so_does_everything_else(traced):
    source, scripted = traced
    assert (source.info, source.status) == (scripted.info, scripted.status)
    session = source.open_session()
    scripted.session.emit(free_slots=3, queued=2, passes=(Pass("decode", 1),))
    (step,) = await run(session, scripted.session)
    assert (step.free_slots, step.queued, step.passes) == (3, 2, (Pass("decode", 1),))


async def test_the_context_crosses_the_wire(uds_path, source, closing, recorder):
    await closing.enter_async_context(serving(TracedSource(source, recorder.tracer), uds_path))
    client = GeneratorClient(uds_path, poll_interval_s=0.05, retry_s=0.02)
    await client.start()
    closing.push_async_callback(client.close)
    await client.wait_ready()
    stream = client.stream(REQUEST)
    first = asyncio.ensure_future(anext(stream))
    (await source.until_open(1)).decode(7, finish=FinishReason.LENGTH)
    await first
    await stream.aclose()
    assert f"{recorder.one(NAME).parent.span_id:016x}" == SPAN


def test_a_submission_says_why_it_is_not_the_first(recorder):
    submission(recorder.tracer, REQUEST, GeneratorLostError("killed")).end()
    span = recorder.one(NAME)
    assert span.kind is SpanKind.CLIENT
    (event,) = span.events
    assert (event.name, event.attributes) == ("resumed", {"reason": "killed", "tokens": 1})
    untraced = GenerationRequest((1, 2), 2, 8)
    assert submission(recorder.tracer, untraced, None) is NO_SPAN
