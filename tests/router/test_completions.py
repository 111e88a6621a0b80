"""Text completions of one and several prompts in one answer (conformance cases 134 to 138 and 141 to 143)."""

from __future__ import annotations

import asyncio
import time

import pytest
from chat_requests import counted, events
from completion_requests import EOS, PATH, complete, passes

from neuron_server.errors import GenerationError

# -- one answer ----------------------------------------------------------------------------------------------


@pytest.mark.case(134)
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


@pytest.mark.case(142)
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


@pytest.mark.case(141)
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


@pytest.mark.case(135)
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


@pytest.mark.case(137)
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


@pytest.mark.case(136)
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


@pytest.mark.case(138)
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


@pytest.mark.case(143)
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
