"""Streams of text completions of one and several prompts (conformance cases 139, 140 and 144)."""

from __future__ import annotations

import asyncio

import pytest
from chat_requests import counted, events
from completion_requests import EOS, PATH, choices, complete, passes
from raw_request import Wire

from neuron_server.errors import GenerationError
from neuron_server.router import sse
from neuron_server.router.sse import begin


@pytest.mark.case(140)
async def test_a_stream_ends_with_usage_in_tgis_own_words(harness, tokenizer):
    (a,) = tokenizer.encode("a")
    answer = await complete(harness(script=(a, EOS)), stream=True, max_tokens=9)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.headers["x-compute-characters"] == "5"
    assert not [name for name in answer.headers if name.endswith(("-time", "-tokens"))]
    first, last = events(answer)
    assert set(first) == {"object", "id", "created", "choices", "model", "system_fingerprint"}
    assert first["object"] == "text_completion"
    assert (first["id"], first["model"]) == ("", "M")
    assert first["choices"] == [{"index": 0, "text": "a", "logprobs": None, "finish_reason": ""}]
    assert set(last) == {*first, "usage"}
    assert last["choices"] == [{"index": 0, "text": "</s>", "logprobs": None, "finish_reason": "eos_token"}]
    assert last["usage"] == {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}


@pytest.mark.case(139)
async def test_four_prompts_stream_at_once_and_each_ends_with_its_own_usage(harness, tokenizer):
    one = harness()
    prompts = ["1", "Hello 2", "3", "4"]
    for text, prompt in zip(("abc", "d", "efgh", "ij"), prompts, strict=True):
        one.script(prompt, *tokenizer.encode(text), EOS)
    found = events(await complete(one, prompts, stream=True, max_tokens=9))
    assert len({event["created"] for event in found}) == 1
    assert {len(event["choices"]) for event in found} == {1}
    for index, text in enumerate(("abc", "d", "efgh", "ij")):
        own = choices(found, index)
        assert "".join(choice["text"] for choice in own) == f"{text}</s>"
        assert [choice["finish_reason"] for choice in own] == [""] * len(text) + ["eos_token"]
    usages = [(event["choices"][0]["index"], event["usage"]) for event in found if "usage" in event]
    assert dict(usages)[1] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assert len(usages) == 4
    assert [event["choices"][0]["index"] for event in found[:4]] == [0, 1, 2, 3]  # none waits for another


async def test_events_that_come_together_leave_in_one_piece(harness):
    one = harness()
    wire = Wire(one.app, PATH, {"prompt": ["a", "b", "c"], "stream": True, "max_tokens": 3})
    assert (await wire.body()).count(b"data: ") == 3
    await wire.task


@pytest.mark.case(144)
async def test_a_refused_prompt_is_one_event_among_those_of_the_others(harness):
    answer = await complete(harness(), ["Hello", "", "x"], stream=True, max_tokens=3)
    assert answer.status_code == 200
    found = events(answer)
    errors = [event for event in found if "error" in event]
    assert errors == [
        {"error": {"message": "Input validation error: `inputs` cannot be empty", "http_status_code": 422}}
    ]
    assert [len(choices(found, index)) for index in (0, 1, 2)] == [3, 0, 3]


async def test_when_all_prompts_are_refused_the_first_refusal_has_its_status(harness):
    one = harness()
    answer = await complete(one, ["", "x" * 1500], stream=True, max_tokens=1)
    assert answer.status_code == 422
    assert answer.json()["error"] == "Input validation error: `inputs` cannot be empty"
    assert not [name for name in answer.headers if name.startswith("x-")]
    assert 'tgi_request_failure{err="validation"} 2' in counted(one)
    one = harness(max_concurrent_requests=0)
    assert (await complete(one, ["a", "b"], stream=True)).status_code == 429
    assert (await complete(harness(), "", stream=True)).status_code == 422
    assert one.service.in_flight == 0


async def test_when_all_prompts_fail_before_a_token_the_failure_has_its_status(harness):
    one = harness()
    one.script("a", GenerationError("slow"))
    one.source.script = (GenerationError("boom"),)
    answer = await complete(one, ["a", "b"], stream=True)
    assert answer.status_code == 424
    assert answer.json()["error"].endswith("slow")
    assert one.service.in_flight == 0


async def test_a_prompt_that_fails_in_the_middle_is_one_event_and_the_others_go_on(harness):
    one = harness()
    one.script("x", 40, 41, GenerationError("boom"))
    one.script("y", 40, EOFError)
    found = events(await complete(one, ["Hello", "x", "y"], stream=True, max_tokens=5))
    errors = {event["error"]["message"] for event in found if "error" in event}
    assert errors == {
        "Incomplete generation stream",
        "Request failed during generation: Server error: boom",
    }
    assert [len(choices(found, index)) for index in (0, 1, 2)] == [5, 2, 1]
    assert choices(found, 0)[-1]["finish_reason"] == "length"
    assert one.service.in_flight == 0
    assert 'tgi_request_failure{err="generation"} 1' in counted(one)


async def test_a_failure_at_the_very_end_is_told_too(harness):
    one = harness()
    failing = one.script("x", 40, GenerationError("boom"))
    failing.gate.clear()
    wire = Wire(one.app, PATH, {"prompt": ["Hello", "x"], "stream": True, "max_tokens": 2})
    await one.source.closed.wait()
    failing.gate.set()
    await wire.task
    sent = b""
    while not wire.sent.empty():
        sent += (await wire.sent.get()).get("body", b"")
    assert sent.count(b"http_status_code") == 1
    assert sent.count(b"[DONE]") == 1
    assert sent.endswith(b"data: [DONE]\n\n")


async def test_the_permit_of_a_prompt_is_free_when_its_stream_ends(harness):
    one = harness(max_concurrent_requests=2)
    slow = one.script("slow", 40)
    slow.gate.clear()
    task = asyncio.create_task(complete(one, ["slow", "x"], stream=True, max_tokens=1))
    await one.source.closed.wait()
    await passes(lambda: one.service.in_flight == 1)
    assert (await complete(one, "y", max_tokens=1)).status_code == 200
    slow.gate.set()
    assert len(events(await task)) == 2


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_client_that_leaves_frees_the_slots_of_all_its_prompts(harness, streamed):
    one = harness()
    prompts = ["a", "b", "c", "d"]
    sources = [one.script(prompt, 40) for prompt in prompts]
    for source in sources[1:]:
        source.gate.clear()
    if not streamed:
        sources[0].gate.clear()
    wire = Wire(one.app, PATH, {"prompt": prompts, "stream": streamed, "max_tokens": 500})
    for source in sources:
        await source.arrived.wait()
    if streamed:
        assert b'"index":0,' in await wire.body()
    assert one.service.in_flight == 4
    wire.leave()
    await wire.task
    assert all(source.closed.is_set() for source in sources)
    assert one.service.in_flight == 0
    assert 'tgi_request_failure{err="dropped"} 4' in counted(one)


async def test_prompts_that_all_wait_long_begin_with_a_keep_alive(harness, monkeypatch):
    monkeypatch.setattr(sse, "KEEP_ALIVE_S", 0.01)
    monkeypatch.setattr(sse, "begin", lambda frames: begin(frames, patience_s=0.01))
    one = harness()
    one.source.gate.clear()
    wire = Wire(one.app, PATH, {"prompt": ["a", "b"], "stream": True, "max_tokens": 1})
    assert await wire.body() == b":\n\n"
    one.source.gate.set()
    while b"[DONE]" not in await wire.body():
        pass
    await wire.task
    assert one.service.in_flight == 0
