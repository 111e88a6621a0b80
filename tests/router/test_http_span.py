"""The trace of a request in the router, from the HTTP request to the submission."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import httpx
import pytest
from chat_requests import NO_TOOL, WEATHER, chat, writes
from opentelemetry.trace import SpanKind, StatusCode
from recorded_spans import Recorder, events

from neuron_server.errors import GenerationError
from neuron_server.router.http_span import HttpSpans

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GENERATION = {"validate": {}, "queued": {}, "infer": {}}


@dataclass
class Traced:
    harness: object
    recorder: Recorder
    client: httpx.AsyncClient

    async def post(self, path="/generate", inputs="Hello", headers=None, stream=None, **parameters):
        body = {"inputs": inputs, "parameters": {"max_new_tokens": 3, **parameters}}
        if stream is not None:
            body["stream"] = stream
        return await self.client.post(path, json=body, headers=headers)


@pytest.fixture
async def traced(harness):
    recorder = Recorder()
    made = []

    def make(**settings) -> Traced:
        one = harness(**settings)
        app = HttpSpans(one.app, recorder.tracer)
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        made.append(Traced(one, recorder, httpx.AsyncClient(transport=transport, base_url="http://t")))
        return made[-1]

    yield make
    for one in made:
        await one.client.aclose()


@pytest.mark.parametrize("name", ["generate", "generate_stream"])
async def test_a_request_is_one_tree(traced, name):
    one = traced()
    assert (await one.post(f"/{name}", do_sample=True, seed=7)).status_code == 200
    assert one.recorder.tree() == {f"POST /{name}": {name: {"generate_stream": GENERATION}}}
    http = one.recorder.one(f"POST /{name}")
    assert http.kind is SpanKind.SERVER
    asked = {
        "http.request.method": "POST",
        "http.route": f"/{name}",
        "http.response.status_code": 200,
        "network.protocol.version": "1.1",
        "server.address": "t",
        "url.path": f"/{name}",
        "url.query": "",
        "url.scheme": "http",
        "span.type": "web",
    }
    assert {key: http.attributes[key] for key in asked} == asked
    assert http.attributes["user_agent.original"].startswith("python-httpx/")


async def test_the_handler_tells_parameters_and_times_as_tgi_does(traced):
    one = traced()
    await one.post(do_sample=True, seed=7, stop=["\n"], temperature=0.5)
    told = one.recorder.one("generate").attributes
    assert told["parameters"] == (
        "GenerateParameters { best_of: None, temperature: Some(0.5), repetition_penalty: None, "
        "frequency_penalty: None, top_k: None, top_p: None, typical_p: None, do_sample: true, "
        'max_new_tokens: Some(3), return_full_text: None, stop: ["\\n"], truncate: None, watermark: false, '
        "details: false, decoder_input_details: false, seed: Some(7), top_n_tokens: None, grammar: None, "
        "adapter_id: None }"
    )
    assert told["queue_time"] == "2ms"
    assert told["seed"] == "Some(7)"
    for name in ("total_time", "validation_time", "inference_time", "time_per_token"):
        assert told[name].endswith("s")
    asked = {"add_special_tokens": True, "max_new_tokens": 3}
    assert one.recorder.one("validate").attributes == asked
    generation = next(span for span in one.recorder.named("generate_stream"))
    assert generation.attributes["generated_tokens"] == 3
    assert generation.attributes["finish_reason"] == "length"
    assert events(generation) == ["first_token"]


@pytest.mark.parametrize(("stream", "inner"), [(False, "generate"), (True, "generate_stream")])
async def test_a_handler_that_hands_over_is_around_the_other_one(traced, stream, inner):
    one = traced()
    await one.post("/", stream=stream)
    assert one.recorder.tree() == {"POST /": {"compat_generate": {inner: {"generate_stream": GENERATION}}}}
    assert not one.recorder.one("compat_generate").attributes


async def test_a_platform_s_handler_is_around_the_route_s(traced):
    one = traced()
    assert (await one.post("/invocations")).status_code == 200
    assert one.recorder.tree() == {
        "POST /invocations": {
            "sagemaker_compatibility": {"compat_generate": {"generate": {"generate_stream": GENERATION}}}
        }
    }


@pytest.mark.parametrize("stream", [False, True])
async def test_a_chat_that_is_asked_again_without_tools_is_one_trace(traced, tokenizer, stream):
    one = traced()
    writes(one.harness, tokenizer, NO_TOOL, "Hello")
    body = chat(tools=[WEATHER], stream=stream)
    assert (await one.client.post("/v1/chat/completions", json=body)).status_code == 200
    (handler,) = one.recorder.tree()["POST /v1/chat/completions"].values()
    assert list(handler) == [
        "apply_chat_template", "generate_stream", "apply_chat_template#2", "generate_stream#2"
    ]  # fmt: skip
    assert len({request.traceparent for request in one.harness.source.requests}) == 2


async def test_best_of_is_several_generations_in_one_trace(traced):
    one = traced()
    await one.post(do_sample=True, best_of=2)
    assert one.recorder.tree() == {
        "POST /generate": {
            "generate": {"generate_best_of": {"generate_stream": GENERATION, "generate_stream#2": GENERATION}}
        }
    }
    requests = one.harness.source.requests
    assert len({request.traceparent for request in requests}) == 2


async def test_the_caller_s_trace_goes_on_and_down_to_the_generator(traced):
    one = traced()
    await one.post(headers={"traceparent": f"00-{TRACE}-{SPAN}-01"})
    assert {f"{span.context.trace_id:032x}" for span in one.recorder.spans} == {TRACE}
    assert f"{one.recorder.one('POST /generate').parent.span_id:016x}" == SPAN
    (generation,) = one.recorder.named("generate_stream")
    (request,) = one.harness.source.requests
    assert request.traceparent == f"00-{TRACE}-{generation.context.span_id:016x}-01"


async def test_a_malformed_traceparent_is_ignored(traced):
    one = traced()
    assert (await one.post(headers={"traceparent": f"ff-{TRACE}-{SPAN}-01"})).status_code == 200
    assert one.recorder.one("POST /generate").parent is None


async def test_without_traces_a_traceparent_goes_nowhere(harness):
    one = harness()
    body = {"inputs": "Hello", "parameters": {"max_new_tokens": 1}}
    await one.client.post("/generate", json=body, headers={"traceparent": f"00-{TRACE}-{SPAN}-01"})
    assert [request.traceparent for request in one.source.requests] == [None]


async def test_a_client_s_mistake_marks_its_handler_and_not_the_server(traced):
    one = traced()
    assert (await one.post(temperature=-1.0)).status_code == 422
    http, handler = one.recorder.one("POST /generate"), one.recorder.one("generate")
    assert http.status.status_code is StatusCode.UNSET
    assert http.attributes["http.response.status_code"] == 422
    assert (handler.status.status_code, handler.status.description) == (
        StatusCode.ERROR,
        "`temperature` must be strictly positive",
    )
    assert one.recorder.one("validate").status.status_code is StatusCode.ERROR


async def test_a_body_that_cannot_be_read_marks_its_handler(traced):
    one = traced()
    assert (await one.client.post("/generate", content=b"{")).status_code == 415
    assert one.recorder.one("generate").status.description == "HTTP 415"


async def test_a_failed_generation_marks_everything_above_it(traced):
    one = traced(script=[GenerationError("boom")])
    assert (await one.post()).status_code == 424
    for name in ("generate_stream", "generate"):
        assert one.recorder.one(name).status.description == "boom"


async def test_a_failure_in_mid_stream_marks_the_handler(traced):
    one = traced(script=[72, GenerationError("boom")])
    assert (await one.post("/generate_stream")).status_code == 200
    assert {span.status.description for span in one.recorder.named("generate_stream")} == {"boom"}
    assert one.recorder.one("POST /generate_stream").status.status_code is StatusCode.UNSET


async def test_a_defect_marks_the_http_span_with_what_was_raised(traced, monkeypatch):
    one = traced()

    async def broken(call):
        raise RuntimeError("a defect")

    monkeypatch.setattr(one.harness.service, "generate", broken)
    assert (await one.post()).status_code == 500
    http = one.recorder.one("POST /generate")
    assert (http.status.status_code, http.attributes["exception.message"]) == (StatusCode.ERROR, "a defect")


async def test_a_client_that_leaves_ends_all_spans(traced):
    one = traced()
    one.harness.source.gate.clear()
    asking = asyncio.create_task(one.post("/generate_stream"))
    await one.harness.source.arrived.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert one.recorder.tree() == {
        "POST /generate_stream": {"generate_stream": {"generate_stream": {"validate": {}}}}
    }
    assert "dropped" in [name for span in one.recorder.named("generate_stream") for name in events(span)]
    assert one.harness.service.in_flight == 0


async def test_probes_and_scrapes_are_not_traced(traced):
    one = traced()
    for path in ("/health", "/", "/metrics", "/info"):
        await one.client.get(path)
    assert one.recorder.spans == ()


async def test_a_path_without_a_route_has_no_route_in_its_name(traced):
    one = traced()
    assert (await one.client.post("/nowhere")).status_code == 404
    assert "http.route" not in one.recorder.one("POST").attributes


async def test_messages_of_a_stream_are_passed_on_one_by_one():
    seen = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for n in range(3):
            await send({"type": "http.response.body", "body": b"%d" % n, "more_body": n < 2})
            assert len(seen) == n + 2

    async def send(message):
        seen.append(message)

    scope = {"type": "http", "method": "POST", "path": "/x", "headers": [], "query_string": b""}
    scope |= {"http_version": "1.1", "scheme": "http"}
    await HttpSpans(app, Recorder().tracer)(scope, None, send)
    assert [message.get("body") for message in seen] == [None, b"0", b"1", b"2"]
