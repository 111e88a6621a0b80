"""Shapes of TGI's own routes (conformance cases 53, 62 to 91, 94 to 97)."""

from __future__ import annotations

import json

import pytest
from conformance import REAL_STATUS

from neuron_server.errors import GenerationError, UnavailableError

case = pytest.mark.case

TIMES = [
    "x-compute-time",
    "x-total-time",
    "x-validation-time",
    "x-queue-time",
    "x-inference-time",
    "x-time-per-token",
    "x-prompt-tokens",
    "x-generated-tokens",
]


def events(answer) -> list[dict]:
    """Data events, with the framing checked byte for byte."""
    blocks = answer.content.split(b"\n\n")
    assert blocks.pop() == b""
    assert all(block.startswith(b"data: {") and b"\n" not in block for block in blocks)
    return [json.loads(block[6:]) for block in blocks]


# -- one-shot ------------------------------------------------------------------------------------------------


@pytest.mark.case(63)
async def test_the_answer_has_one_key_unless_details_are_wanted(harness):
    answer = await harness(script=(40, 69)).generate("Hello", max_new_tokens=3)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {"generated_text": "HeH"}


@pytest.mark.case(64)
async def test_details_have_tgis_keys_in_tgis_order(harness, tokenizer):
    ids = tokenizer.encode("ab")
    answer = await harness(script=(*ids, 0)).generate("Hello", max_new_tokens=9, details=True)
    assert answer.text == (
        '{"generated_text":"ab","details":{"finish_reason":"eos_token","generated_tokens":3,"seed":null,'
        '"prefill":[],"tokens":['
        f'{{"id":{ids[0]},"text":"a","logprob":-0.34,"special":false}},'
        f'{{"id":{ids[1]},"text":"b","logprob":-0.34,"special":false}},'
        '{"id":0,"text":"</s>","logprob":-0.34,"special":true}]}}'
    )


@pytest.mark.case(65)
async def test_decoder_input_details_alone_shows_details(harness):
    answer = await harness().generate("Hello", max_new_tokens=1, decoder_input_details=True)
    assert list(answer.json()) == ["generated_text", "details"]
    assert answer.json()["details"]["prefill"] == []


@pytest.mark.case(81)
async def test_scored_prompt_tokens_begin_with_null(harness, tokenizer):
    one = harness()
    one.source.prompt_logprobs = True
    answer = await one.generate("Hello x", max_new_tokens=1, decoder_input_details=True)
    prefill = answer.json()["details"]["prefill"]
    assert [token["text"] for token in prefill] == ["Hello", " ", "x"]
    assert [token["logprob"] for token in prefill] == [None, -0.5, -0.5]
    assert list(prefill[0]) == ["id", "text", "logprob"]


@pytest.mark.case(81)
async def test_a_log_probability_that_is_not_a_number_or_not_known_is_null(harness):
    for value in (float("nan"), float("-inf"), None):
        one = harness()
        one.source.logprob = value
        answer = await one.generate("Hello", max_new_tokens=1, details=True)
        assert '"logprob":null' in answer.text
        assert answer.json()["details"]["tokens"][0]["logprob"] is None


async def test_text_is_utf8_not_escaped(harness, tokenizer):
    answer = await harness(script=tokenizer.encode("é😀")).generate("x", max_new_tokens=6)
    assert "é😀" in answer.text


@pytest.mark.case(66)
async def test_top_tokens_are_one_list_per_token(harness):
    answer = await harness(script=(40, 41)).generate("Hello", max_new_tokens=2, details=True, top_n_tokens=2)
    details = answer.json()["details"]
    assert list(details)[-1] == "top_tokens"
    assert [[t["id"] for t in tokens] for tokens in details["top_tokens"]] == [[40, 41], [41, 42]]


async def test_top_tokens_of_a_backend_without_them_are_empty_lists(harness):
    one = harness()
    one.source.top_tokens = False
    answer = await one.generate("Hello", max_new_tokens=2, details=True, top_n_tokens=2)
    assert answer.json()["details"]["top_tokens"] == [[], []]
    answer = await one.generate("Hello", max_new_tokens=2, details=True)
    assert "top_tokens" not in answer.json()["details"]


async def test_best_of_shows_the_others_and_all_seeds(harness):
    one = harness(max_best_of=3)
    answer = await one.generate("Hello", best_of=3, do_sample=True, details=True, max_new_tokens=2)
    details = answer.json()["details"]
    assert list(details)[-1] == "best_of_sequences"
    assert [list(other)[:4] for other in details["best_of_sequences"]] == [
        ["generated_text", "finish_reason", "generated_tokens", "seed"]
    ] * 2
    seeds = {details["seed"], *(other["seed"] for other in details["best_of_sequences"])}
    assert seeds == {request.sampling.seed for request in one.source.requests}
    assert len(seeds) == 3


@pytest.mark.case(53)
async def test_the_seed_given_is_echoed_exactly_when_sampling(harness):
    seed = 18446744073709551615
    one = harness()
    answer = await one.generate("a", seed=seed, do_sample=True, details=True, max_new_tokens=1)
    assert f'"seed":{seed}' in answer.text
    answer = await one.generate("a", seed=seed, details=True, max_new_tokens=1)
    assert answer.json()["details"]["seed"] is None


@pytest.mark.case(68)
async def test_one_token_ends_by_length(harness):
    details = (await harness().generate("Hello", max_new_tokens=1, details=True)).json()["details"]
    assert (details["finish_reason"], details["generated_tokens"], len(details["tokens"])) == ("length", 1, 1)


@pytest.mark.case(69)
async def test_return_full_text_puts_the_prompt_in_front(harness):
    answer = await harness(script=(40,)).generate("Hello", max_new_tokens=1, return_full_text=True)
    assert answer.json()["generated_text"] == "HelloH"


@pytest.mark.case(70)
async def test_a_stop_string_ends_the_text_and_frees_the_slot(harness, tokenizer):
    one = harness(script=tokenizer.encode("abcdef"))
    answer = await one.generate("Hello", max_new_tokens=100, stop=["cd"], details=True)
    assert answer.json()["generated_text"] == "abcd"
    assert answer.json()["details"]["finish_reason"] == "stop_sequence"
    assert answer.json()["details"]["generated_tokens"] == 4
    assert one.source.closed.is_set()


@pytest.mark.case(72, 73)
async def test_success_carries_the_timing_headers(harness):
    answer = await harness().generate("é😀", max_new_tokens=3)
    assert answer.headers["x-compute-type"]
    assert answer.headers["x-compute-characters"] == "2"
    assert float(answer.headers["x-compute-time"]) > 0
    assert all(answer.headers[name].isdigit() for name in TIMES[1:])
    assert answer.headers["x-queue-time"] == "2"
    assert answer.headers["x-prompt-tokens"] == "6"
    assert answer.headers["x-generated-tokens"] == "3"


async def test_a_refusal_carries_none_of_them(harness):
    for inputs in ("", None):
        answer = await harness().generate(inputs)
        assert answer.status_code == 422
        assert not [name for name in answer.headers if name.startswith("x-")]


@pytest.mark.case(96)
async def test_a_failed_generation_is_424_and_an_unfinished_one_500(harness):
    answer = await harness(script=(40, GenerationError("boom"))).generate("Hello")
    assert answer.status_code == 424
    assert answer.json() == {
        "error": "Request failed during generation: Server error: boom",
        "error_type": "generation",
    }
    answer = await harness(script=(40, EOFError)).generate("Hello")
    assert answer.status_code == 500
    assert answer.json() == {"error": "Incomplete generation", "error_type": "incomplete_generation"}


async def test_a_defect_is_500_and_tells_nothing(harness, monkeypatch):
    one = harness()
    monkeypatch.setattr(one.service, "generate", None)
    answer = await one.generate("Hello")
    assert answer.status_code == 500
    assert answer.json() == {"error": "Internal server error", "error_type": "internal"}


# -- / -------------------------------------------------------------------------------------------------------


@pytest.mark.case(75, 77)
async def test_the_root_answers_an_array_of_one_with_the_prompt(harness):
    one = harness(script=(40,))
    answer = await one.generate("Hello", "/", max_new_tokens=2)
    assert answer.json() == [{"generated_text": "HelloHH"}]
    answer = await one.generate("Hello", "/", max_new_tokens=2, return_full_text=False)
    assert answer.json() == [{"generated_text": "HH"}]


@pytest.mark.case(78)
async def test_the_roots_errors_are_plain_objects(harness):
    answer = await harness().generate("", "/")
    assert answer.status_code == 422
    text = "Input validation error: `inputs` cannot be empty"
    assert answer.json() == {"error": text, "error_type": "validation"}


@pytest.mark.case(85)
async def test_the_root_streams_on_demand_with_the_prompt_in_the_end(harness):
    body = {"inputs": "Hello", "stream": True, "parameters": {"max_new_tokens": 2}}
    answer = await harness(script=(40,)).client.post("/", json=body)
    found = events(answer)
    assert [event["token"]["text"] for event in found] == ["H", "H"]
    assert [event["generated_text"] for event in found] == [None, "HelloHH"]


@pytest.mark.case(79)
async def test_generate_ignores_stream(harness):
    body = {"inputs": "Hello", "stream": True, "parameters": {"max_new_tokens": 2}}
    answer = await harness().client.post("/generate", json=body)
    assert answer.headers["content-type"] == "application/json"
    assert list(answer.json()) == ["generated_text"]


@pytest.mark.case(62)
async def test_the_body_of_the_pypi_client_is_accepted(harness):
    nulls = ["best_of", "repetition_penalty", "frequency_penalty", "return_full_text", "seed", "temperature"]
    nulls += ["top_k", "top_p", "truncate", "typical_p", "top_n_tokens", "grammar", "adapter_id"]
    parameters = dict.fromkeys(nulls) | {
        "do_sample": False,
        "max_new_tokens": 2,
        "stop": [],
        "watermark": False,
        "details": True,
        "decoder_input_details": False,
    }
    answer = await harness().client.post(
        "/", json={"inputs": "Hello", "parameters": parameters, "stream": False}
    )
    assert answer.status_code == 200
    assert answer.json()[0]["details"]["finish_reason"] == "length"


# -- streams -------------------------------------------------------------------------------------------------


@pytest.mark.case(82, 83)
async def test_a_stream_is_framed_and_shaped_as_tgis(harness, tokenizer):
    ids = tokenizer.encode(" P")
    one = harness(script=(*ids, 0))
    answer = await one.generate("Hello", "/generate_stream", max_new_tokens=5, details=True)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.headers["x-compute-type"] == "gpu+optimized"
    assert answer.headers["x-compute-characters"] == "5"
    assert not [name for name in TIMES if name in answer.headers]
    assert "content-length" not in answer.headers
    assert answer.text == (
        f'data: {{"index":1,"token":{{"id":{ids[0]},"text":" ","logprob":-0.34,"special":false}},'
        '"generated_text":null,"details":null}\n\n'
        f'data: {{"index":2,"token":{{"id":{ids[1]},"text":"P","logprob":-0.34,"special":false}},'
        '"generated_text":null,"details":null}\n\n'
        'data: {"index":3,"token":{"id":0,"text":"</s>","logprob":-0.34,"special":true},'
        '"generated_text":" P","details":{"finish_reason":"eos_token","generated_tokens":3,"seed":null,'
        '"input_length":1}}\n\n'
    )


@pytest.mark.case(84)
async def test_a_stream_without_details_ends_with_null_details(harness):
    found = events(await harness().generate("Hello", "/generate_stream", max_new_tokens=2))
    assert [event["details"] for event in found] == [None, None]
    assert [event["generated_text"] is None for event in found] == [True, False]


@pytest.mark.case(94)
async def test_a_stream_of_one_token_is_one_event(harness):
    found = events(await harness().generate("Hello", "/generate_stream", max_new_tokens=1))
    assert len(found) == 1
    assert found[0]["generated_text"] == found[0]["token"]["text"]


async def test_top_tokens_of_a_stream_are_flat_and_absent_when_empty(harness):
    one = harness()
    found = events(await one.generate("Hello", "/generate_stream", max_new_tokens=2, top_n_tokens=2))
    assert [len(event["top_tokens"]) for event in found] == [2, 2]
    assert list(found[0]) == ["index", "token", "top_tokens", "generated_text", "details"]
    found = events(await one.generate("Hello", "/generate_stream", max_new_tokens=2))
    assert "top_tokens" not in found[0]


@pytest.mark.case(86)
async def test_token_texts_add_up_to_the_generated_text(harness, tokenizer):
    script = (*tokenizer.encode("é日😀 Hello stop here"), 0)
    for stop in ([], ["op h"], ["</s>"]):
        one = harness(script=script)
        found = events(await one.generate("Hello", "/generate_stream", max_new_tokens=99, stop=stop))
        text = "".join(e["token"]["text"] for e in found if not e["token"]["special"])
        assert found[-1]["generated_text"] == text
        assert text == ("é日😀 Hello stop h" if stop == ["op h"] else "é日😀 Hello stop here")


async def test_a_stream_and_a_whole_answer_say_the_same(harness):
    one = harness(script=(40, 41, 42))
    whole = (await one.generate("Hello", max_new_tokens=5, details=True)).json()
    found = events(await one.generate("Hello", "/generate_stream", max_new_tokens=5, details=True))
    assert [event["token"] for event in found] == whole["details"]["tokens"]
    assert found[-1]["generated_text"] == whole["generated_text"]
    assert found[-1]["details"]["finish_reason"] == whole["details"]["finish_reason"]


@pytest.mark.parametrize(
    ("inputs", "parameters", "text"),
    [
        pytest.param("", {}, "`inputs` cannot be empty", marks=case(87, deviation=REAL_STATUS)),
        *(
            pytest.param(
                "Hello",
                {"best_of": copies},
                "`best_of` != 1 is not supported when streaming tokens",
                marks=case(88, deviation=REAL_STATUS),
            )
            for copies in (2, 0)
        ),
        pytest.param(
            "Hello",
            {"decoder_input_details": True},
            "`decoder_input_details` == true is not supported when streaming tokens",
            marks=case(89, deviation=REAL_STATUS),
        ),
    ],
)
async def test_a_refused_stream_gets_its_real_status(harness, inputs, parameters, text):
    answer = await harness().generate(inputs, "/generate_stream", **parameters)
    assert answer.status_code == 422
    assert answer.json() == {"error": f"Input validation error: {text}", "error_type": "validation"}
    assert not [name for name in answer.headers if name.startswith("x-")]


async def test_a_stream_that_fails_before_its_first_token_gets_its_real_status(harness):
    one = harness(script=(GenerationError("boom"),))
    answer = await one.generate("Hello", "/generate_stream")
    assert answer.status_code == 424
    assert answer.json()["error_type"] == "generation"
    assert one.service.in_flight == 0
    answer = await harness(script=(EOFError,)).generate("Hello", "/generate_stream")
    assert answer.status_code == 500


@pytest.mark.case(95)
async def test_a_stream_that_fails_later_ends_with_one_error_event(harness):
    one = harness(script=(40, 41, GenerationError("boom")))
    found = events(await one.generate("Hello", "/generate_stream"))
    assert [event["index"] for event in found[:-1]] == [1, 2]
    assert found[-1] == {
        "error": "Request failed during generation: Server error: boom",
        "error_type": "generation",
    }
    found = events(await harness(script=(40, EOFError)).generate("Hello", "/generate_stream"))
    assert found[-1] == {
        "error": "Incomplete generation stream",
        "error_type": "incomplete_generation_stream",
    }


async def test_after_failures_no_permit_is_lost(harness):
    one = harness(script=(40, GenerationError("boom")), max_concurrent_requests=2)
    for _ in range(5):
        for path in ("/generate", "/generate_stream", "/"):
            await one.generate("Hello", path)
            await one.generate("", path)
            await one.generate("Hello", path, best_of=2, do_sample=True)
    assert one.service.in_flight == 0


async def test_an_unavailable_source_is_503(harness):
    answer = await harness(script=(UnavailableError("the generator is away"),)).generate("Hello")
    assert answer.status_code == 503
    assert answer.json() == {"error": "the generator is away", "error_type": "unavailable"}
