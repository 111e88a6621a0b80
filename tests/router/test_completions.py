"""Text completions, one answer and stream, of one and several prompts (conformance cases 134 to 144)."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from raw_request import Wire

from neuron_server.errors import GenerationError
from neuron_server.router import sse
from neuron_server.router.sse import begin

PATH = "/v1/completions"
EOS = 0


async def complete(one, prompt="Hello", **fields):
    return await one.client.post(PATH, json={"prompt": prompt, **fields})


def events(answer) -> list[dict]:
    """Data events before ``[DONE]``, which stands there exactly once, at the end."""
    blocks = answer.content.split(b"\n\n")
    assert blocks.pop() == b""
    assert blocks.pop() == b"data: [DONE]"
    assert all(block.startswith(b"data: {") and b"\n" not in block for block in blocks)
    return [json.loads(block[6:]) for block in blocks]


def choices(found: list[dict], index: int) -> list[dict]:
    """The choices of one prompt, in order."""
    of_all = [choice for event in found for choice in event.get("choices", ())]
    return [choice for choice in of_all if choice["index"] == index]


def counted(one) -> list[str]:
    return one.service.metrics.render().decode().splitlines()


async def passes(condition) -> None:
    """Let everybody run until ``condition`` holds; it must within a few rounds."""
    for _ in range(100):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("never came true")


# -- one answer ----------------------------------------------------------------------------------------------


async def test_the_answer_has_every_key_openai_clients_look_for(harness, tokenizer, monkeypatch):
    monkeypatch.setenv("DOCKER_LABEL", "sha-1234")
    before = int(time.time())
    one = harness(script=tokenizer.encode("ab"))
    answer = await complete(one, model="whatever", max_tokens=2, temperature=0.0)
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert before <= body.pop("created") <= time.time()
    assert body.pop("system_fingerprint").endswith("-sha-1234")
    assert body == {
        "object": "text_completion",
        "id": "",
        "model": "M",
        "choices": [{"index": 0, "text": "ab", "logprobs": None, "finish_reason": "length"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
    }


async def test_outside_an_image_the_fingerprint_says_native(harness, monkeypatch):
    monkeypatch.delenv("DOCKER_LABEL", raising=False)
    answer = await complete(harness(), max_tokens=1)
    assert answer.json()["system_fingerprint"].endswith("-native")


async def test_the_headers_are_those_of_generate_without_compute_time(harness):
    answer = await complete(harness(), ["Hello", "é😀"], max_tokens=2)
    found = {name for name in answer.headers if name.startswith("x-")}
    assert found == {
        *("x-compute-type", "x-compute-characters", "x-total-time", "x-validation-time", "x-queue-time"),
        *("x-inference-time", "x-time-per-token", "x-prompt-tokens", "x-generated-tokens"),
    }
    assert answer.headers["x-compute-characters"] == "7"
    assert answer.headers["x-prompt-tokens"] == "7"  # one, and six bytes
    assert answer.headers["x-generated-tokens"] == "4"
    assert answer.headers["x-queue-time"] == "4"  # two of 2 ms each


async def test_an_end_by_eos_is_a_stop_and_by_a_stop_string_stays_what_it_is(harness, tokenizer):
    (a,) = tokenizer.encode("a")
    answer = await complete(harness(script=(a, EOS)), max_tokens=9)
    assert answer.json()["choices"][0] == {
        "index": 0,
        "text": "a",
        "logprobs": None,
        "finish_reason": "stop",
    }
    answer = await complete(harness(script=(a,)), max_tokens=9, stop=["aa"])
    assert answer.json()["choices"][0]["finish_reason"] == "stop_sequence"
    assert answer.json()["choices"][0]["text"] == "aa"


async def test_choices_stand_in_the_order_of_completion_with_the_index_of_their_prompt(harness, tokenizer):
    one = harness()
    ids = dict(zip("abcd", tokenizer.encode("abcd"), strict=True))
    first = one.script("1", ids["a"])
    first.gate.clear()
    one.script("2", ids["b"])
    one.script("3", ids["c"])
    last = one.script("4", ids["d"])
    last.gate.clear()
    task = asyncio.create_task(complete(one, ["1", "2", "3", "4"], max_tokens=2))
    await passes(lambda: len(one.source.requests) == 4)
    await passes(lambda: one.service.in_flight == 2)  # those that are done have given their permits back
    last.gate.set()
    await last.closed.wait()
    first.gate.set()
    body = (await task).json()
    assert [(c["index"], c["text"]) for c in body["choices"]] == [(1, "bb"), (2, "cc"), (3, "dd"), (0, "aa")]
    assert body["usage"] == {"prompt_tokens": 4, "completion_tokens": 8, "total_tokens": 12}


async def test_a_list_of_one_is_the_same_as_its_text(harness):
    listed = (await complete(harness(), ["Hello"], max_tokens=1)).json()
    alone = (await complete(harness(), "Hello", max_tokens=1)).json()
    assert listed["choices"] == alone["choices"]


async def test_the_prompt_gets_special_tokens_and_its_parameters_reach_the_source(harness):
    one = harness()
    await complete(one, max_tokens=1, temperature=0.5, top_p=0.9, seed=7, frequency_penalty=1)
    sampling = one.source.requests[0].sampling
    assert (sampling.do_sample, sampling.temperature, sampling.seed) == (True, 0.5, 7)
    await complete(one, max_tokens=1, temperature=0)
    assert one.source.requests[1].sampling.do_sample is False
    assert one.source.requests[1].prompt_logprobs is False  # nobody would see them
    await complete(one, max_tokens=1)
    assert one.source.requests[2].sampling.do_sample is True


async def test_a_stop_may_be_one_string(harness, tokenizer):
    answer = await complete(harness(script=tokenizer.encode("a")), max_tokens=9, stop="a")
    assert answer.json()["choices"][0]["finish_reason"] == "stop_sequence"


# -- refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_suffix_is_refused_in_words_of_its_own_and_before_the_number_of_prompts(harness, streamed):
    one = harness()
    for prompt in ("Hello", ["x"] * 9):
        answer = await complete(one, prompt, suffix="", stream=streamed)
        assert answer.status_code == 422
        assert answer.json() == {
            "error": "Suffix is not supported and can be achieved by preprocessing the prompt.",
            "error_type": "suffix not supported",
        }
    assert 'tgi_request_failure{err="validation"} 2' in counted(one)
    assert "tgi_request_count 2" in counted(one)
    assert (await complete(one, suffix=None, max_tokens=1)).status_code == 200


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("number", [5, 10_000])
async def test_too_many_prompts_are_refused_before_any_is_looked_at(harness, streamed, number):
    one = harness()
    answer = await complete(one, [""] * number, stream=streamed)
    assert answer.status_code == 422
    assert answer.json() == {
        "error": "Number of prompts exceeds the maximum allowed batch size of 4",
        "error_type": "batch size exceeded",
    }
    assert 'tgi_request_failure{err="validation"} 1' in counted(one)
    assert not [name for name in answer.headers if name.startswith("x-")]
    assert one.source.requests == []


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": []},
        {"prompt": [1, 2]},
        {"prompt": [[1, 2]]},
        {"prompt": None},
        {"prompt": 5},
        {"prompt": {"text": "x"}},
        {},
        {"prompt": "x", "max_tokens": -1},
        {"prompt": "x", "max_tokens": "5"},
        {"prompt": "x", "stream": None},
        {"prompt": "x", "stop": 5},
        {"prompt": "x", "suffix": 5},
        {"prompt": "x", "seed": 1.5},
        {"prompt": ["x"] * 100_000 + [1]},
    ],
)
async def test_a_body_of_wrong_types_is_refused_as_text(harness, body):
    one = harness()
    answer = await one.client.post(PATH, json=body)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.text.startswith("Failed to deserialize the JSON body into the target type: ")
    assert "tgi_request_count" not in counted(one)


async def test_an_empty_list_of_prompts_is_named(harness):
    answer = await complete(harness(), [])
    assert "Empty array detected" in answer.text


async def test_one_refused_prompt_refuses_the_whole_answer_before_any_work(harness):
    one = harness()
    answer = await complete(one, ["Hello", ""])
    assert answer.status_code == 422
    assert answer.json() == {
        "error": "Input validation error: `inputs` cannot be empty",
        "error_type": "validation",
    }
    assert one.source.requests == []
    assert one.service.in_flight == 0


async def test_one_prompt_that_fails_fails_the_whole_answer_and_stops_the_others(harness):
    one = harness()
    one.source.gate.clear()
    one.script("x", 40, GenerationError("boom"))
    answer = await complete(one, ["Hello", "x", "Hello"])
    assert answer.status_code == 424
    assert answer.json()["error_type"] == "generation"
    assert one.source.closed.is_set()
    assert one.service.in_flight == 0
    assert 'tgi_request_failure{err="generation"} 1' in counted(one)
    assert 'tgi_request_failure{err="dropped"} 2' in counted(one)


async def test_each_prompt_takes_a_permit(harness):
    one = harness(max_concurrent_requests=3)
    assert (await complete(one, ["a", "b", "c"], max_tokens=1)).status_code == 200
    for streamed in (False, True):
        answer = await complete(one, ["a", "b", "c", "d"], stream=streamed, max_tokens=1)
        if streamed:
            errors = [event for event in events(answer) if "error" in event]
            assert errors == [{"error": {"message": "Model is overloaded", "http_status_code": 422}}]
        else:
            assert answer.status_code == 429
        assert one.service.in_flight == 0


@pytest.mark.parametrize("streamed", [True, False])
async def test_the_request_counts_once_and_each_prompt_once_more(harness, streamed):
    one = harness()
    await complete(one, ["a", "b", "c"], max_tokens=2, stream=streamed)
    assert "tgi_request_count 4" in counted(one)
    assert "tgi_request_success 3" in counted(one)
    assert "tgi_request_input_length_count 3" in counted(one)


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_server_that_is_not_open_says_so(harness, streamed):
    answer = await complete(harness(opened=False), stream=streamed)
    assert (answer.status_code, answer.json()["error_type"]) == (503, "unavailable")


# -- streams -------------------------------------------------------------------------------------------------


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
