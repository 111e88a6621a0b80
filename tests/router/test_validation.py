"""Rules, order and texts of TGI's parameter checks (conformance cases 1 to 43)."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from conformance import REAL_STATUS
from raw_request import Wire

from neuron_server.router.validation import Validator

SMALL = {"max_stop_sequences": 3, "max_top_n_tokens": 4, "max_input_tokens": 5}
B6 = {**SMALL, "max_total_tokens": 6}
B106 = {**SMALL, "max_total_tokens": 106}
A: dict = {}

HELLOS = "Hello" + " Hello" * 5

case = pytest.mark.case

# ruff: noqa: E501 - one case a line, as the contract lists them
REFUSED = [
    (case(1), B6, "Hello", {"max_new_tokens": 10}, "`inputs` tokens + `max_new_tokens` must be <= 6. Given: 1 `inputs` tokens and 10 `max_new_tokens`"),
    (case(2), B6, HELLOS, {}, "`inputs` must have less than 5 tokens. Given: 6"),
    (case(3), B6, HELLOS + " Hello", {}, "`inputs` tokens + `max_new_tokens` must be <= 6. Given: 7 `inputs` tokens and 0 `max_new_tokens`"),
    (case(4), B106, "Hello", {"best_of": 2, "do_sample": False}, "you must use sampling when `best_of` is > 1"),
    (case(6), B106, "Hello", {"best_of": 3, "do_sample": True}, "`best_of` must be > 0 and <= 2. Given: 3"),
    (case(7), {"max_best_of": 1}, "Hello", {"best_of": 2, "do_sample": True}, "`best_of` != 1 is not allowed for this endpoint"),
    (case(8), A, "Hello", {"best_of": 2, "do_sample": True, "seed": 1}, "`seed` must not be set when `best_of` > 1"),
    (case(10), B106, "Hello", {"top_p": 1.0, "max_new_tokens": 5}, "`top_p` must be > 0.0 and < 1.0"),
    (case(10), B106, "Hello", {"top_p": 0.99999999999, "max_new_tokens": 5}, "`top_p` must be > 0.0 and < 1.0"),
    (case(12), A, "Hello", {"top_p": 0}, "`top_p` must be > 0.0 and < 1.0"),
    (case(13), B106, "Hello", {"top_n_tokens": 5, "max_new_tokens": 5}, "`top_n_tokens` must be >= 0 and <= 4. Given: 5"),
    (case(15), A, "Hello", {"temperature": 0}, "`temperature` must be strictly positive"),
    (case(15), A, "Hello", {"temperature": 1e-50}, "`temperature` must be strictly positive"),
    (case(16), A, "Hello", {"temperature": -1.5}, "`temperature` must be strictly positive"),
    (case(17), A, "Hello", {"repetition_penalty": 0}, "`repetition_penalty` must be strictly positive"),
    (case(18), A, "Hello", {"frequency_penalty": 2.01}, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
    (case(20), A, "Hello", {"typical_p": 1}, "`typical_p` must be > 0.0 and < 1.0"),
    (case(21), A, "Hello", {"top_k": 0}, "`top_k` must be strictly positive"),
    (case(21), A, "Hello", {"top_k": -1}, "`top_k` must be strictly positive"),
    (case(22), A, "Hello", {"max_new_tokens": 0}, "`max_new_tokens` must be strictly positive"),
    (case(23), B106, "Hello", {"stop": ["a", "b", "c", "d"]}, "`stop` supports up to 3 stop sequences. Given: 4"),
    (case(24), A, "", {}, "`inputs` cannot be empty"),
    (case(26), A, "Hello", {"truncate": 0}, "`truncate` must be strictly positive and less than 1024. Given: 0"),
    (case(27), A, "Hello", {"truncate": 1025}, "`truncate` must be strictly positive and less than 1024. Given: 1025"),
    (case(31), A, "Hello" + " Hello" * 1024, {"max_new_tokens": 5}, "`inputs` must have less than 1024 tokens. Given: 1025"),
    (case(33), {"max_total_tokens": 1025}, "Hello" + " Hello" * 9, {"max_new_tokens": 5000}, "`inputs` tokens + `max_new_tokens` must be <= 1025. Given: 10 `inputs` tokens and 1024 `max_new_tokens`"),
    (case(34), A, "", {"temperature": 0, "top_k": 0}, "`temperature` must be strictly positive"),
    (case(35), {"disable_grammar_support": True}, "Hello", {"grammar": {"type": "regex", "value": "a+"}}, "grammar is not supported"),
    (case(36), A, "Hello", {"grammar": {"type": "json", "value": 5}}, "grammar is not supported"),
    (case(37), A, "Hello", {"grammar": {"type": "json", "value": {"type": "object"}}}, "grammar is not valid: Grammar must have a 'properties' field"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("profile", "inputs", "parameters", "text"), [pytest.param(*row, marks=mark) for mark, *row in REFUSED]
)
async def test_a_broken_rule_is_named_in_tgis_words(harness, profile, inputs, parameters, text):
    body = {"inputs": inputs, **({"parameters": parameters} if parameters else {})}
    answer = await harness(**profile).client.post("/generate", json=body)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {"error": f"Input validation error: {text}", "error_type": "validation"}


ACCEPTED = [
    (case(5), B106, "Hello", {"best_of": 2, "top_k": 5, "max_new_tokens": 5}),
    (case(9), A, "Hello", {"best_of": 0, "max_new_tokens": 2}),
    (case(19), A, "Hello", {"frequency_penalty": 2.0, "max_new_tokens": 2}),
    (case(19), A, "Hello", {"frequency_penalty": -2.0, "max_new_tokens": 2}),
    (case(25), A, "   ", {"max_new_tokens": 1}),
    (case(28), A, "Hello", {"truncate": 1024, "max_new_tokens": 1}),
    (case(30), A, "Hello" + " Hello" * 1023, {"max_new_tokens": 5}),
    ((), A, "Hello", {"temperature": 1e39, "max_new_tokens": 1}),
]


@pytest.mark.parametrize(
    ("profile", "inputs", "parameters"), [pytest.param(*row, marks=mark) for mark, *row in ACCEPTED]
)
async def test_what_tgi_accepts_is_accepted(harness, profile, inputs, parameters):
    answer = await harness(**profile).generate(inputs, **parameters)
    assert answer.status_code == 200, answer.text
    assert list(answer.json()) == ["generated_text"]
    assert answer.headers["x-generated-tokens"] == str(parameters["max_new_tokens"])


@pytest.mark.case(9)
async def test_a_best_of_zero_has_no_others(harness):
    answer = await harness().generate("Hello", best_of=0, max_new_tokens=2, details=True)
    assert "best_of_sequences" not in answer.json()["details"]


@pytest.mark.parametrize(
    ("given", "top_p", "top_n_tokens"),
    [
        pytest.param({"top_p": 0.99}, 0.9900000095367432, 0, marks=case(11)),  # rounded to 32 bits
        pytest.param({}, 1.0, 0, marks=[case(11), case(14)]),
        pytest.param({"top_n_tokens": 4}, 1.0, 4, marks=case(14)),
        pytest.param({"top_n_tokens": 0}, 1.0, 0, marks=case(14)),
    ],
)
async def test_what_is_given_reaches_the_sampler_and_neutral_values_otherwise(
    harness, given, top_p, top_n_tokens
):
    one = harness(**B106)
    answer = await one.generate("Hello", max_new_tokens=5, **given)
    assert answer.status_code == 200
    (request,) = one.source.requests
    assert (request.sampling.top_p, request.sampling.top_n_tokens) == (top_p, top_n_tokens)


@pytest.mark.case(38)
async def test_a_schema_in_a_string_that_is_no_json_is_refused_in_its_own_words(harness):
    answer = await harness().generate("Hello", grammar={"type": "json", "value": "{not json"})
    assert (answer.status_code, answer.json()["error_type"]) == (422, "validation")
    assert answer.json()["error"].startswith("Input validation error: grammar is not valid: ")


@pytest.mark.case(39)
async def test_a_schema_in_a_string_is_as_good_as_one_in_an_object(harness):
    one = harness()
    schema = {"properties": {"a": {"type": "string"}}}
    for value in (json.dumps(schema), schema):
        answer = await one.generate("Hello", max_new_tokens=1, grammar={"type": "json", "value": value})
        assert answer.status_code == 200, answer.text
    first, second = (request.grammar for request in one.source.requests)
    assert (first.kind, json.loads(first.text)["properties"]) == ("json_schema", schema["properties"])
    assert first == second


async def test_an_absent_max_new_tokens_means_what_fits(harness):
    one = harness(max_total_tokens=100, max_input_tokens=50)
    await one.generate("Hello Hello")
    assert one.source.requests[0].max_new_tokens == 98


@pytest.mark.case(32)
async def test_an_enormous_max_new_tokens_is_cut_to_the_slot(harness):
    one = harness()
    answer = await one.generate("Hello", max_new_tokens=100_000, details=True)
    assert one.source.requests[0].max_new_tokens == 2047
    assert answer.json()["details"]["finish_reason"] == "length"


@pytest.mark.case(29)
async def test_truncation_keeps_the_last_tokens(harness):
    one = harness()
    answer = await one.generate("x" * 1490 + "0123456789", truncate=10, max_new_tokens=1)
    assert answer.headers["x-prompt-tokens"] == "10"
    assert one.service.tokenizer.decode(one.source.requests[0].input_ids) == "0123456789"


async def test_neutral_values_reach_the_engine_when_nothing_is_given(harness):
    one = harness()
    await one.generate("Hello", max_new_tokens=1)
    sampling = one.source.requests[0].sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.typical_p) == (1.0, 0, 1.0, 1.0)
    assert (sampling.repetition_penalty, sampling.frequency_penalty, sampling.top_n_tokens) == (1.0, 0.0, 0)


async def test_values_are_rounded_to_32_bits(harness):
    one = harness()
    await one.generate("Hello", top_p=0.99, temperature=0.7, top_n_tokens=4, max_new_tokens=1)
    sampling = one.source.requests[0].sampling
    assert (sampling.top_p, sampling.temperature) == (0.9900000095367432, 0.699999988079071)
    assert sampling.top_n_tokens == 4


@pytest.mark.parametrize(
    ("body", "do_sample"),
    [
        ({}, True),
        ({"parameters": {}}, False),
        ({"parameters": {"do_sample": True}}, True),
        ({"parameters": {"temperature": 0.5}}, True),
        ({"parameters": {"temperature": 1.0}}, False),
        ({"parameters": {"top_k": 3}}, True),
        ({"parameters": {"top_p": 0.5}}, True),
        ({"parameters": {"typical_p": 0.5}}, True),
        ({"parameters": {"repetition_penalty": 1.2}}, False),
    ],
)
async def test_sampling_is_on_when_asked_for_or_implied_by_a_warper(harness, body, do_sample):
    one = harness(max_total_tokens=10, max_input_tokens=5)
    answer = await one.client.post("/generate", json={"inputs": "Hello", **body})
    assert answer.status_code == 200
    assert one.source.requests[0].sampling.do_sample is do_sample


async def test_a_drawn_seed_is_new_each_time_and_has_64_bits(harness):
    one = harness()
    for _ in range(4):
        await one.generate("Hello", do_sample=True, max_new_tokens=1)
    seeds = [request.sampling.seed for request in one.source.requests]
    assert len(set(seeds)) == 4
    assert max(seeds) >= 2**56


@pytest.mark.parametrize("parameters", [{"watermark": True}, {"adapter_id": "lora"}])
async def test_what_is_not_supported_is_refused_by_name(harness, parameters):
    answer = await harness().generate("Hello", **parameters)
    assert answer.status_code == 422
    assert f"`{next(iter(parameters))}` is not supported" in answer.json()["error"]


async def test_a_long_prompt_is_tokenized_by_the_executor(tokenizer, harness):
    used = []

    class Recording(ThreadPoolExecutor):
        def submit(self, *args, **kwargs):
            used.append(args)
            return super().submit(*args, **kwargs)

    one = harness(max_input_tokens=20_000, max_total_tokens=30_000)
    from neuron_server.router.tgi_schema import GenerateParameters

    with Recording(1) as executor:
        validator = Validator(one.service.config, tokenizer, executor)
        await validator.validate("Hello", GenerateParameters())
        assert not used
        await validator.validate("x" * 9000, GenerateParameters())
        assert len(used) == 1


async def test_a_tokenizer_that_fails_is_a_validation_error(harness, monkeypatch):
    one = harness()

    def fail(*args, **kwargs):
        raise RuntimeError("bad piece")

    monkeypatch.setattr(one.service._validator, "_blocking_encode", fail)
    answer = await one.generate("Hello")
    assert answer.status_code == 422
    assert answer.json()["error"] == "Input validation error: tokenizer error bad piece"


async def test_a_prompt_without_tokens_is_refused_or_begins_with_bos(harness, monkeypatch):
    one = harness()
    monkeypatch.setattr(one.service._validator, "_blocking_encode", lambda *_: [])
    assert (await one.generate(" ")).status_code == 422
    one.service.tokenizer.bos_id = 7
    try:
        assert (await one.generate(" ", max_new_tokens=1)).status_code == 200
    finally:
        one.service.tokenizer.bos_id = None
    assert one.source.requests[0].input_ids == (7,)


@pytest.mark.parametrize(
    ("inputs", "path"),
    [
        pytest.param("Hello", "/generate", marks=case(40)),
        pytest.param("", "/generate", marks=case(41)),
        pytest.param("Hello", "/generate_stream", marks=case(90, deviation=REAL_STATUS)),
        pytest.param("", "/generate_stream", marks=case(90, deviation=REAL_STATUS)),
    ],
)
async def test_a_full_server_says_overloaded_even_to_an_invalid_request(harness, inputs, path):
    one = harness(max_concurrent_requests=1)
    wire = Wire(one.app, "/generate_stream", {"inputs": "Hello", "parameters": {"max_new_tokens": 2}})
    assert b'"index":1,' in await wire.body()
    answer = await one.generate(inputs, path)
    assert answer.status_code == 429
    assert answer.headers["content-type"] == "application/json"
    assert answer.text == '{"error":"Model is overloaded","error_type":"overloaded"}'
    assert b'"index":2,' in await wire.body()
    await wire.task
    assert (await one.generate("Hello", path, max_new_tokens=1)).status_code == 200


@pytest.mark.case(42)
async def test_a_full_server_tokenizes(harness):
    one = harness(max_concurrent_requests=1)
    one.source.gate.clear()
    running = asyncio.create_task(one.generate("Hello", "/generate_stream", max_new_tokens=1))
    await one.source.arrived.wait()
    assert one.service.in_flight == 1
    answer = await one.client.post("/tokenize", json={"inputs": "Hello"})
    assert (answer.status_code, len(answer.json())) == (200, 1)
    one.source.gate.set()
    await running


@pytest.mark.case(43)
async def test_each_copy_of_best_of_takes_a_permit(harness):
    one = harness(max_concurrent_requests=1)
    answer = await one.generate("Hello", best_of=2, do_sample=True)
    assert answer.status_code == 429
    assert answer.json() == {"error": "Model is overloaded", "error_type": "overloaded"}
    assert one.service.in_flight == 0
    assert not one.source.requests
