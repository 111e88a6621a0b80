"""Cases of TGI's own routes that look at every header, or at more than one request (of 63 to 97)."""

from __future__ import annotations

import json
import re

import pytest
from conformance import NO_SHARD_RPC
from raw_request import Wire

from neuron_server.errors import BackendError, GenerationError
from neuron_server.event import FinishReason, TokenEvent
from neuron_server.session import Phase

HEADERS = {
    "x-compute-type": "gpu\\+optimized",
    "x-compute-time": r"\d+\.\d+(e-\d+)?",
    "x-compute-characters": "5",
    "x-total-time": r"\d+",
    "x-validation-time": r"\d+",
    "x-queue-time": "2",
    "x-inference-time": r"\d+",
    "x-time-per-token": r"\d+",
    "x-prompt-tokens": "1",
    "x-generated-tokens": "2",
}
GENERATE = {"inputs": "Hello", "parameters": {"max_new_tokens": 2}}
BEST_OF = {"inputs": "Hello", "parameters": {"best_of": 2, "do_sample": True, "max_new_tokens": 2}}


def ours(answer) -> dict[str, str]:
    """The headers that are about the generation."""
    return {name: value for name, value in answer.headers.items() if name.startswith("x-")}


@pytest.mark.case(72)
@pytest.mark.parametrize(
    ("path", "body"),
    [("/generate", GENERATE), ("/", GENERATE), ("/invocations", GENERATE), ("/generate", BEST_OF)],
)
async def test_every_answer_has_these_ten_headers_and_no_other(harness, monkeypatch, path, body):
    monkeypatch.delenv("COMPUTE_TYPE", raising=False)
    answer = await harness().client.post(path, json=body)
    assert answer.status_code == 200
    found = ours(answer)
    assert set(found) == set(HEADERS)
    for name, pattern in HEADERS.items():
        assert re.fullmatch(pattern, found[name]), (name, found[name])


@pytest.mark.case(72)
async def test_a_chats_answer_has_them_too(harness):
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    answer = await harness().client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200
    assert set(ours(answer)) == set(HEADERS)


@pytest.mark.case(74)
@pytest.mark.parametrize(
    ("status", "settings", "request_"),
    [
        (400, {}, {"content": b"{", "headers": {"content-type": "application/json"}}),
        (401, {"api_key": "k"}, {"json": GENERATE}),
        (404, {}, {"json": GENERATE, "url": "/nope"}),
        (405, {}, {"method": "GET"}),
        (413, {"payload_limit": 9}, {"json": GENERATE}),
        (415, {}, {"content": b"{}"}),
        (422, {}, {"json": {}}),
        (422, {}, {"json": {"inputs": ""}}),
        (424, {"script": (40, GenerationError("boom"))}, {"json": {"inputs": "Hello"}}),
        (429, {"max_concurrent_requests": 0}, {"json": GENERATE}),
    ],
)
async def test_no_refusal_has_any_of_them(harness, status, settings, request_):
    answer = await harness(**settings).client.request(**{"method": "POST", "url": "/generate", **request_})
    assert answer.status_code == status
    assert ours(answer) == {}


@pytest.mark.case(67)
async def test_best_of_two_has_one_other_sequence(harness):
    answer = await harness().generate("Hello", best_of=2, do_sample=True, details=True, max_new_tokens=2)
    details = answer.json()["details"]
    (other,) = details["best_of_sequences"]
    assert isinstance(details["seed"], int)
    assert isinstance(other["seed"], int)
    keys = ["generated_text", "finish_reason", "generated_tokens", "seed", "prefill", "tokens"]
    assert list(other) == keys


@pytest.mark.case(76)
async def test_the_root_echoes_the_prompt_for_a_local_model_of_no_known_kind(harness):
    one = harness(model_id="/data/model", pipeline_tag=None)
    answer = await one.generate("Hello", "/", max_new_tokens=2)
    assert answer.json() == [{"generated_text": "Hellohh"}]


@pytest.mark.parametrize(
    ("body", "samples"),
    [
        pytest.param({}, True, marks=pytest.mark.case(80)),
        pytest.param({"parameters": {}}, False, marks=pytest.mark.case(80)),
        # TGI's router passes false on, and then its shard samples because of the temperature
        pytest.param(
            {"parameters": {"temperature": 0.5}}, True, marks=pytest.mark.case(80, deviation=NO_SHARD_RPC)
        ),
    ],
)
async def test_whether_the_generator_is_to_sample(harness, body, samples):
    one = harness(max_total_tokens=10, max_input_tokens=5)
    assert (await one.client.post("/generate", json={"inputs": "Hello", **body})).status_code == 200
    assert [request.sampling.do_sample for request in one.source.requests] == [samples]


@pytest.mark.case(81)
async def test_prompt_logprobs_that_are_not_numbers_are_null(harness, monkeypatch):
    one = harness()

    async def scored(request):
        scores = (float("nan"), -0.5)
        yield TokenEvent(40, -1.0, finish=FinishReason.LENGTH, prompt_logprobs=scores)

    monkeypatch.setattr(one.source, "stream", scored)
    answer = await one.generate("Hello Hello", max_new_tokens=1, decoder_input_details=True)

    def never(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    prefill = json.loads(answer.content, parse_constant=never)["details"]["prefill"]
    assert [token["logprob"] for token in prefill] == [None, -0.5]


@pytest.mark.case(82, 83)
async def test_three_tokens_are_three_events_and_no_more(harness):
    one = harness(script=(40, 41, 42))
    body = {"inputs": "Hello", "parameters": {"max_new_tokens": 3, "details": True}}
    answer = await one.client.post("/generate_stream", json=body)
    assert ours(answer) == {
        "x-compute-type": "gpu+optimized",
        "x-compute-characters": "5",
        "x-accel-buffering": "no",
    }
    lines = answer.text.split("\n")
    assert len(lines) == 7
    assert lines[1::2] == ["", "", ""]
    found = [json.loads(line.removeprefix("data: ")) for line in lines[:-1:2]]
    assert [event["index"] for event in found] == [1, 2, 3]
    assert {tuple(event) for event in found} == {("index", "token", "generated_text", "details")}
    assert [(event["generated_text"], event["details"]) for event in found[:2]] == [(None, None)] * 2
    assert found[2]["generated_text"] == "HIJ"
    assert found[2]["details"] == {
        "finish_reason": "length",
        "generated_tokens": 3,
        "seed": None,
        "input_length": 1,
    }


@pytest.mark.case(95)
async def test_a_failure_in_mid_stream_is_one_event_byte_for_byte(harness):
    one = harness(script=(40, 41, BackendError("boom")))
    wire = Wire(one.app, "/generate_stream", {"inputs": "Hello"})
    assert b'"index":1,' in await wire.body()
    assert b'"index":2,' in await wire.body()
    text = b"Request failed during generation: Server error: boom"
    assert await wire.body() == b'data: {"error":"' + text + b'","error_type":"generation"}\n\n'
    assert await wire.body() == b""
    await wire.task


@pytest.mark.case(175)
async def test_a_request_whose_prefill_fails_is_a_424_and_the_running_ones_go_on(harness):
    one = harness()
    one.script("joins", BackendError("no room"))
    wire = Wire(one.app, "/generate_stream", {"inputs": "Hello", "parameters": {"max_new_tokens": 2}})
    assert b'"index":1,' in await wire.body()
    answer = await one.generate("joins")
    assert answer.status_code == 424
    text = "Request failed during generation: Server error: no room"
    assert answer.json() == {"error": text, "error_type": "generation"}
    assert b'"generated_text":"hh"' in await wire.body()
    await wire.task


@pytest.mark.case(97, deviation=NO_SHARD_RPC)
async def test_after_a_failure_health_is_what_the_generator_says_and_new_requests_work(harness):
    """TGI asks its shard for a prefill; here a generator that cannot go on says so itself, and ends."""
    one = harness(script=(40, BackendError("boom")))
    for path in ("/generate", "/generate_stream"):
        assert "boom" in (await one.generate("Hello", path)).text
    assert (await one.client.get("/health")).status_code == 200
    one.source.script = (40,)
    assert (await one.generate("Hello", max_new_tokens=1)).status_code == 200
    one.source.phase = Phase.FAILED
    assert (await one.client.get("/health")).status_code == 503
