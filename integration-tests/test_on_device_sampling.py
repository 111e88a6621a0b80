"""The whole server over a model that samples on the device, which ``--on-device-sampling`` emulates."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from harness import Server

pytestmark = pytest.mark.group(16)

PROMPT = "The list type is"
GENERATE, STREAM, CHAT, COMPLETIONS = (
    "/generate",
    "/generate_stream",
    "/v1/chat/completions",
    "/v1/completions",
)

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}

#: Parameter -> what is sent with it, on the routes of which it is one. Each is refused by its name.
NATIVE = {
    "repetition_penalty": {"repetition_penalty": 1.2},
    "frequency_penalty": {"frequency_penalty": 0.5},
    "typical_p": {"typical_p": 0.9},
    "top_p": {"top_p": 0.9},
    "top_k": {"top_k": 100_000},
    "top_n_tokens": {"top_n_tokens": 2},
    "seed": {"seed": 1, "do_sample": True},
    "grammar": {"grammar": {"type": "regex", "value": "a+"}},
}
REFUSED = [
    *((GENERATE, name, sent) for name, sent in NATIVE.items()),
    *((STREAM, name, sent) for name, sent in NATIVE.items()),
    (GENERATE, "best_of", {"best_of": 2, "do_sample": True}),
    (GENERATE, "decoder_input_details", {"decoder_input_details": True}),
    *(
        (CHAT, next(iter(sent)), sent)
        for sent in (
            *({"presence_penalty": 0}, {"frequency_penalty": 1}, {"top_p": 0.5}, {"seed": 1}),
            *({"logprobs": True}, {"top_logprobs": 2}, {"tools": [TOOL]}),
            {"response_format": {"type": "json_object", "value": {"properties": {}}}},
            {"seed": 1, "stream": True},
            {"logprobs": True, "stream": True},
        )
    ),
    *(
        (COMPLETIONS, next(iter(sent)), sent)
        for sent in (
            *({"repetition_penalty": 2}, {"frequency_penalty": 1}, {"top_p": 0.5}, {"seed": 1}),
            {"top_p": 0.5, "stream": True},
        )
    ),
]


@pytest.fixture(scope="module")
def device() -> Iterator[Server]:
    server = Server("--max-batch-size", "4", "--on-device-sampling")
    try:
        yield server.wait_ready()
    finally:
        code = server.stop()
    assert code == 0, server.output


def post(server: Server, path: str, sent: dict) -> httpx.Response:
    body: dict = {"inputs": PROMPT, "parameters": {"max_new_tokens": 16, **sent}}
    if path == CHAT:
        body = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 16, **sent}
    if path == COMPLETIONS:
        body = {"prompt": PROMPT, "max_tokens": 16, **sent}
    return httpx.post(server.base_url + path, json=body, timeout=60)


def details(server: Server, **sent: object) -> dict:
    answer = post(server, GENERATE, {"details": True, **sent})
    assert answer.status_code == 200, answer.text
    return answer.json()["details"]


def ids(told: dict) -> list[int]:
    return [token["id"] for token in told["tokens"]]


@pytest.mark.group(13)
def test_greedy_tokens_are_those_of_a_model_with_logits(demo, device):
    told = details(device, max_new_tokens=40)
    assert ids(told) == ids(details(demo, max_new_tokens=40))
    assert {token["logprob"] for token in told["tokens"]} == {None}
    assert told["seed"] is None


def test_a_stream_has_a_null_for_each_log_probability_and_for_the_seed(device):
    answer = post(device, STREAM, {"details": True, "do_sample": True})
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line]
    assert answer.status_code == 200
    assert all(event["token"]["logprob"] is None for event in events)
    assert answer.text.count('"logprob":null') == len(events)
    assert events[-1]["details"]["seed"] is None
    assert events[-1]["details"]["generated_tokens"] == len(events)


def test_sampling_is_drawn_by_the_device_which_repeats_nothing(demo, device):
    hot = {"temperature": 5.0, "max_new_tokens": 24}
    assert ids(details(device, **hot)) != ids(details(device, **hot))
    only_one_choice = {"top_k": 1, "temperature": 5.0, "max_new_tokens": 24}
    assert ids(details(device, **only_one_choice)) == ids(details(demo, max_new_tokens=24))


@pytest.mark.parametrize(("path", "name", "sent"), REFUSED)
def test_what_needs_logits_is_refused_with_a_real_422_that_names_it(device, path, name, sent):
    answer = post(device, path, sent)
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()
    assert error["error_type"] == "validation"
    assert error["error"].startswith(f"Input validation error: `{name}` is ")
    assert "--no-on-device-sampling" in error["error"]


def test_neighbours_notice_nothing_of_draws_and_refusals_beside_them(device):
    alone = ids(details(device, max_new_tokens=60))
    with ThreadPoolExecutor(12) as pool:
        greedy = [pool.submit(details, device, max_new_tokens=60) for _ in range(4)]
        drawn = [pool.submit(details, device, temperature=2.0, max_new_tokens=40) for _ in range(4)]
        refused = [pool.submit(post, device, GENERATE, {"top_n_tokens": 1}) for _ in range(8)]
        assert [future.result().status_code for future in refused] == [422] * 8
        assert all(len(ids(future.result())) >= 1 for future in drawn)
        assert [ids(future.result()) for future in greedy] == [alone] * 4


@pytest.mark.parametrize(
    ("path", "sent"), [(CHAT, {"temperature": 0.7}), (COMPLETIONS, {"temperature": 0.7})]
)
def test_openai_clients_that_ask_for_no_more_are_served(device, path, sent):
    answer = post(device, path, {**sent, "frequency_penalty": 0, "n": 1, "seed": None})
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["logprobs"] is None
    greedy = post(device, path, {"temperature": 0, "top_p": 0.5, "seed": 7})
    assert greedy.status_code == 200, greedy.text


def test_info_says_who_samples(demo, device):
    outputs = [httpx.get(f"{one.base_url}/info").json()["model_output"] for one in (demo, device)]
    assert outputs == ["logits", "tokens"]


def test_the_narrower_top_p_is_served_where_it_is_accepted(launch):
    server = launch("--on-device-sampling", "--approximate-top-p").wait_ready()
    assert len(ids(details(server, top_p=0.5, max_new_tokens=8))) >= 1
    narrow = ids(details(server, top_p=1e-3, temperature=3.0, max_new_tokens=24))
    assert narrow == ids(details(server, max_new_tokens=24))  # only the first is kept
    assert post(server, GENERATE, {"typical_p": 0.5}).status_code == 422
    assert post(server, CHAT, {"top_p": 0.5, "temperature": 0.8}).status_code == 200


def test_a_stream_outlives_its_generator(launch):
    """Where there is a choice, the rest is drawn anew; of one candidate there is none."""
    slow = ("--backend", "fake", "--on-device-sampling", "--simulated-clock", "0:1=0.01")
    server = launch(*slow).wait_ready()
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 60, "details": True}}

    def streamed(sent: dict, kill_at: int = 0) -> list[int]:
        url, got = server.base_url + STREAM, []
        with httpx.stream("POST", url, json=sent, timeout=120) as response:
            for event in (json.loads(line[6:]) for line in response.iter_lines() if line):
                assert "error" not in event, event
                got.append(event["token"]["id"])
                if len(got) == kill_at:
                    os.kill(server.children()["serve_generator"], signal.SIGKILL)
        return got

    undisturbed = streamed(body)
    assert len(undisturbed) > 20
    assert streamed(body, kill_at=10) == undisturbed
    body["parameters"] |= {"temperature": 3.0, "top_k": 1}
    assert streamed(body, kill_at=10) == undisturbed


def test_the_simulated_clock_goes_around_a_device_that_samples(launch):
    flags = ("--backend", "fake", "--on-device-sampling", "--simulated-clock", "0.03:1=0.02,4=0.02")
    answer = post(launch(*flags).wait_ready(), GENERATE, {"max_new_tokens": 10, "details": True})
    count = int(answer.headers["x-generated-tokens"])
    assert int(answer.headers["x-inference-time"]) >= 30 + 20 * (count - 1)
    assert answer.json()["details"]["tokens"][0]["logprob"] is None
