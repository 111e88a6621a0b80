"""A router in front of a model that samples on the device: what it refuses, and how its answers look."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import replace

import pytest
from chat_requests import WEATHER, ask, chat, counted, events
from completion_requests import complete
from router.conftest import ScriptedSource

from neuron_server.device_sampling import HOST_SAMPLING_EXPORT

pytestmark = pytest.mark.group(16)

GRAMMAR = {"type": "regex", "value": "a+"}
SCHEMA = {"type": "json", "value": {"properties": {"a": {"type": "string"}}}}

#: What TGI's own routes refuse: the parameters, the one that is named, and its value.
NATIVE = [
    ({"repetition_penalty": 1.2}, "repetition_penalty", "1.2"),
    ({"frequency_penalty": 0.1}, "frequency_penalty", "0.1"),
    ({"typical_p": 0.95}, "typical_p", "0.95"),
    ({"top_p": 0.9}, "top_p", "0.9"),
    ({"top_k": 257}, "top_k", "257"),
    ({"top_n_tokens": 3}, "top_n_tokens", "3"),
    ({"do_sample": True, "seed": 0}, "seed", "0"),
    ({"temperature": 0.5, "seed": 42}, "seed", "42"),
    ({"grammar": GRAMMAR}, "grammar", "regex"),
]
#: And what they refuse only when they answer at once.
ONE_SHOT = [
    ({"do_sample": True, "best_of": 2}, "best_of", "2"),
    ({"decoder_input_details": True}, "decoder_input_details", "true"),
]
CHAT = [
    ({"logprobs": True}, "logprobs", "true"),
    ({"logprobs": True, "top_logprobs": 2}, "logprobs", "true"),
    ({"top_logprobs": 2}, "top_logprobs", "2"),
    ({"presence_penalty": 0}, "presence_penalty", "0"),
    ({"presence_penalty": 0.5}, "presence_penalty", "0.5"),
    ({"response_format": SCHEMA}, "response_format", "json"),
    ({"tools": [WEATHER]}, "tools", "a list of 1"),
    ({"seed": 42}, "seed", "42"),
    ({"top_p": 0.9}, "top_p", "0.9"),
    ({"frequency_penalty": 0.5}, "frequency_penalty", "0.5"),
]
COMPLETION = [
    ({"repetition_penalty": 1.1}, "repetition_penalty", "1.1"),
    ({"frequency_penalty": 0.5}, "frequency_penalty", "0.5"),
    ({"seed": 42}, "seed", "42"),
    ({"top_p": 0.9}, "top_p", "0.9"),
]

#: What some clients always send, and what changes nothing.
NEUTRAL = {
    "repetition_penalty": 1.0,
    "frequency_penalty": 0.0,
    "top_n_tokens": 0,
    "best_of": 1,
    "decoder_input_details": False,
    "watermark": False,
    "return_full_text": False,
    **dict.fromkeys(
        ("typical_p", "top_p", "top_k", "seed", "grammar", "truncate", "temperature", "adapter_id")
    ),
}


@pytest.fixture
def device(harness):
    """A maker of harnesses whose model samples on the device."""

    def make(**settings):
        source = ScriptedSource(logprob=None)
        source.info = replace(source.info, output="tokens", max_top_k=256)
        return harness(source=source, **settings)

    return make


def check_refusal(answer, name: str, value: str) -> None:
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert error.startswith(
        f"Input validation error: `{name}` is {value}, but this model samples on the device"
    )
    assert HOST_SAMPLING_EXPORT in error
    assert answer.json()["error_type"] == "validation"


# -- refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/generate", "/"])
@pytest.mark.parametrize(("parameters", "name", "value"), NATIVE + ONE_SHOT)
async def test_what_needs_logits_is_422_and_named(device, path, parameters, name, value):
    one = device()
    check_refusal(await one.generate(path=path, **parameters), name, value)
    assert not one.source.requests


@pytest.mark.parametrize(("parameters", "name", "value"), NATIVE)
async def test_a_stream_is_refused_with_its_real_status(device, parameters, name, value):
    one = device()
    check_refusal(await one.generate(path="/generate_stream", **parameters), name, value)
    body = {"inputs": "Hello", "parameters": parameters, "stream": True}
    check_refusal(await one.client.post("/", json=body), name, value)
    check_refusal(await one.client.post("/invocations", json=body), name, value)
    assert not one.source.requests


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("fields", "name", "value"), CHAT)
async def test_a_chat_is_refused_in_the_words_of_its_own_parameters(device, stream, fields, name, value):
    one = device()
    check_refusal(await ask(one, stream=stream, **fields), name, value)
    assert not one.source.requests


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("fields", "name", "value"), COMPLETION)
async def test_completions_are_refused_for_all_their_prompts_at_once(device, stream, fields, name, value):
    one = device()
    check_refusal(await complete(one, ["Hello", "He"], stream=stream, **fields), name, value)
    assert not one.source.requests


async def test_a_refusal_needs_no_permit_and_keeps_none(device):
    """Waiting for a place would not help; TGI's own rules still come first where both are broken."""
    one = device(max_concurrent_requests=1)
    one.source.gate.clear()
    running = asyncio.ensure_future(one.generate(max_new_tokens=1))
    await one.source.arrived.wait()
    check_refusal(await one.generate(do_sample=True, seed=1), "seed", "1")
    check_refusal(
        await one.generate(path="/generate_stream", repetition_penalty=2), "repetition_penalty", "2"
    )
    assert (await one.generate(temperature=0, seed=1)).json()["error"] == (
        "Input validation error: `temperature` must be strictly positive"
    )
    assert (await one.generate()).status_code == 429
    one.source.gate.set()
    assert (await running).status_code == 200
    assert one.service.in_flight == 0


async def test_refusals_are_counted_and_logged_as_any_other(device, caplog):
    caplog.set_level(logging.ERROR)
    one = device()
    await one.generate(top_n_tokens=1)
    await one.generate(path="/generate_stream", top_n_tokens=1)
    await ask(one, logprobs=True)
    assert 'tgi_request_failure{err="validation"} 3' in counted(one)
    assert sum("samples on the device" in record.message for record in caplog.records) == 3


@pytest.mark.parametrize("copies", [3, 2])
async def test_the_limit_of_best_of_is_still_told_as_tgi_tells_it(device, copies):
    one = device()
    error = (await one.generate(best_of=copies, do_sample=True)).json()["error"]
    tgis = "Input validation error: `best_of` must be > 0 and <= 2. Given: 3"
    assert error == tgis if copies == 3 else error.startswith("Input validation error: `best_of` is 2")


async def test_tokenizing_a_chat_generates_nothing_so_nothing_is_refused(device):
    one = device()
    body = chat(logprobs=True, presence_penalty=0, seed=1)
    assert (await one.client.post("/chat_tokenize", json=body)).status_code == 200


async def test_vertex_has_tgis_one_word_for_it(device):
    one = device()
    body = {"instances": [{"inputs": "Hello", "parameters": {"max_new_tokens": 2, "seed": 1}}]}
    assert (await one.client.post("/vertex", json=body)).status_code == 500
    body["instances"][0]["parameters"].pop("seed")
    assert (await one.client.post("/vertex", json=body)).status_code == 200


@pytest.mark.parametrize(("parameters", "name", "value"), NATIVE + ONE_SHOT)
async def test_a_model_with_logits_does_all_of_it(harness, parameters, name, value):
    assert (await harness().generate(max_new_tokens=2, **parameters)).status_code == 200, (name, value)


# -- what is served ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
async def test_values_that_change_nothing_are_fine(device, path):
    one = device()
    for parameters in (NEUTRAL, {**NEUTRAL, "do_sample": True}, {}):
        assert (await one.generate(path=path, max_new_tokens=2, **parameters)).status_code == 200


async def test_a_seed_is_fine_where_nothing_is_drawn(device):
    one = device()
    assert (await one.generate(seed=42, max_new_tokens=2)).status_code == 200
    assert (await ask(one, seed=42, temperature=0, top_p=0.9, max_tokens=2)).status_code == 200
    assert (await complete(one, seed=42, temperature=0, max_tokens=2)).status_code == 200


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 0.7, "frequency_penalty": 0, "n": 1, "user": "me", "logit_bias": None},
        {"logprobs": False, "top_logprobs": None, "seed": None, "tools": None, "presence_penalty": None},
        {"logprobs": None, "top_logprobs": 0, "presence_penalty": -1.0},
        {"tools": [WEATHER], "tool_choice": "none"},
        {"temperature": 0, "top_p": 0.1},
        {"response_format": {"type": "text"}},
    ],
)
async def test_chats_with_neutral_values_are_answered(device, fields):
    answer = await ask(device(), max_tokens=2, **fields)
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["logprobs"] is None


async def test_sampling_that_the_device_can_do_reaches_it(device):
    one = device()
    assert (await one.generate(temperature=0.5, top_k=256, max_new_tokens=2)).status_code == 200
    sent = one.source.requests[0].sampling
    assert (sent.do_sample, sent.temperature, sent.top_k) == (True, 0.5, 256)


async def test_the_narrower_top_p_is_served_where_the_operator_accepts_it(device):
    one = device(approximate_top_p=True)
    assert (await one.generate(top_p=0.9, max_new_tokens=2)).status_code == 200
    assert (await ask(one, top_p=0.9, max_tokens=2)).status_code == 200
    check_refusal(await one.generate(typical_p=0.9), "typical_p", "0.9")


async def test_details_have_no_seed_and_no_log_probabilities(device):
    answer = await device().generate(do_sample=True, details=True, max_new_tokens=2)
    assert answer.status_code == 200
    details = answer.json()["details"]
    assert details["seed"] is None
    assert [token["logprob"] for token in details["tokens"]] == [None, None]
    assert (details["prefill"], details["generated_tokens"]) == ([], 2)
    assert "top_tokens" not in details


async def test_events_of_a_stream_have_no_seed_and_no_log_probabilities(device):
    answer = await device().generate(path="/generate_stream", do_sample=True, details=True, max_new_tokens=2)
    found = [json.loads(line[5:]) for line in answer.text.splitlines() if line]
    assert [event["token"]["logprob"] for event in found] == [None, None]
    assert b'"logprob":null' in answer.content
    assert found[-1]["details"]["seed"] is None


async def test_chunks_of_a_chat_have_none_either(device):
    found = events(await ask(device(), stream=True, max_tokens=2))
    assert [event["choices"][0]["logprobs"] for event in found] == [None, None]


@pytest.mark.parametrize("output", ["logits", "tokens"])
async def test_info_says_what_comes_out_of_the_model(harness, device, output):
    one = device() if output == "tokens" else harness()
    assert (await one.client.get("/info")).json()["model_output"] == output
    one.source.info = None
    assert (await one.client.get("/info")).json()["model_output"] is None


async def test_before_any_generator_was_ready_nothing_is_known_and_nothing_refused(device):
    """The generator has the same rules at its own edge."""
    one = device()
    one.source.info = None
    assert (await one.generate(top_n_tokens=1, max_new_tokens=2)).status_code == 200
