"""SageMaker's and Vertex AI's routes (conformance cases 154 to 159)."""

from __future__ import annotations

import asyncio
import json

import pytest
from chat_requests import counted
from raw_request import Wire

from neuron_server.errors import GenerationError, UnavailableError

SCHEMA = "Failed to deserialize the JSON body into the target type: "
CHAT = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
COMPLETION = {"prompt": "Hello", "max_tokens": 3}
GENERATE = {"inputs": "Hello", "parameters": {"max_new_tokens": 3}}
INCOMPLETE = {"error": "Incomplete generation", "error_type": "Incomplete generation"}


def timeless(answer) -> tuple[int, str, bytes]:
    """Status, content type and body without the time of day."""
    body = answer.content
    if answer.headers["content-type"] == "application/json" and b'"created"' in body:
        parsed = answer.json()
        parsed.pop("created")
        body = json.dumps(parsed).encode()
    return answer.status_code, answer.headers["content-type"], body


# -- SageMaker -----------------------------------------------------------------------------------------------


@pytest.mark.case(154)
@pytest.mark.parametrize(
    ("path", "body"), [("/", GENERATE), ("/v1/chat/completions", CHAT), ("/v1/completions", COMPLETION)]
)
async def test_an_invocation_is_answered_as_the_route_of_its_body(harness, path, body):
    for change in ({}, {"stream": True}):
        one = harness()
        direct = await one.client.post(path, json={**body, **change})
        answer = await one.client.post("/invocations", json={**body, **change})
        assert answer.status_code == 200
        assert set(answer.headers) == set(direct.headers)
        if not change:
            assert timeless(answer) == timeless(direct)
        else:
            assert answer.headers["content-type"] == "text/event-stream"
            assert answer.content.count(b"data: ") == direct.content.count(b"data: ")


async def test_an_invocation_to_generate_is_a_list_with_the_prompt_in_front(harness, tokenizer):
    one = harness(script=tokenizer.encode("a"))
    answer = await one.client.post("/invocations", json=GENERATE)
    assert answer.json() == [{"generated_text": "Helloaaa"}]


@pytest.mark.case(155)
async def test_inputs_win_over_messages_and_messages_over_a_prompt(harness):
    one = harness()
    answer = await one.client.post("/invocations", json={**COMPLETION, **CHAT, **GENERATE})
    assert isinstance(answer.json(), list)
    answer = await one.client.post("/invocations", json={**COMPLETION, **CHAT})
    assert answer.json()["object"] == "chat.completion"


async def test_a_shape_that_does_not_fit_leaves_the_body_to_the_next_one(harness):
    one = harness()
    answer = await one.client.post("/invocations", json={**COMPLETION, "inputs": 5, "messages": "x"})
    assert answer.json()["object"] == "text_completion"


@pytest.mark.case(156)
@pytest.mark.parametrize(
    "body",
    [
        {"foo": 1},
        {},
        [],
        "inputs",
        5,
        {"inputs": 5},
        {"inputs": None},
        {"inputs": "a", "parameters": {"max_new_tokens": -1}},
        {"inputs": "a", "stream": None},
        {"messages": "x"},
        {"messages": [{"role": "user"}]},
        {**CHAT, "max_tokens": "3"},
        {"prompt": []},
        {"prompt": 5},
        {"inputs": ["x"] * 100_000},
    ],
)
async def test_a_body_that_fits_no_shape_is_refused_as_text(harness, body):
    one = harness()
    answer = await one.client.post("/invocations", json=body)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.text.startswith(f"{SCHEMA}data did not match any variant of untagged enum SagemakerRequest")
    assert "tgi_request_count" not in "".join(counted(one))


async def test_a_field_given_twice_fits_no_shape(harness):
    answer = await harness().client.post(
        "/invocations",
        content=b'{"inputs":"a","inputs":"b"}',
        headers={"content-type": "application/json"},
    )
    assert answer.status_code == 422
    assert "SagemakerRequest" in answer.text


async def test_what_an_invocation_breaks_is_told_as_by_its_route(harness):
    one = harness()
    for body in ({"inputs": ""}, {"prompt": ""}, {"prompt": "x", "suffix": "y"}, {"prompt": ["x"] * 5}):
        answer = await one.client.post("/invocations", json=body)
        path = "/" if "inputs" in body else "/v1/completions"
        assert timeless(answer) == timeless(await one.client.post(path, json=body))
        assert answer.status_code == 422
    answer = await harness(chat_template=None).client.post("/invocations", json=CHAT)
    assert answer.json()["error_type"] == "template_error"


# -- Vertex AI -----------------------------------------------------------------------------------------------


async def predict(one, *instances):
    return await one.client.post("/vertex", json={"instances": instances})


async def test_predictions_stand_in_the_order_of_the_instances(harness, tokenizer):
    one = harness()
    a, b, c = tokenizer.encode("abc")
    slow = one.script("1", a)
    slow.gate.clear()
    one.script("2", b)
    one.source.script = (c,)
    short = {"max_new_tokens": 2}
    task = asyncio.create_task(
        predict(one, {"inputs": "1", "parameters": short}, {"inputs": "2", "parameters": short}, CHAT)
    )
    await one.source.closed.wait()  # the chat, which comes last, is done first
    slow.gate.set()
    answer = await task
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.text == '{"predictions":["aa","bb","ccc"]}'
    assert not [name for name in answer.headers if name.startswith("x-")]
    assert one.service.in_flight == 0


@pytest.mark.case(157)
async def test_vertexs_own_example_is_answered(harness):
    messages = [{"role": "user", "content": "What's Deep Learning?"}]
    answer = await predict(
        harness(), {"messages": messages, "max_tokens": 128, "top_p": 0.95, "temperature": 0.7}
    )
    assert list(answer.json()) == ["predictions"]
    assert len(answer.json()["predictions"]) == 1


async def test_of_the_parameters_of_a_prompt_only_length_and_seed_count(harness):
    one = harness()
    given = {
        "max_new_tokens": 1,
        "seed": 7,
        "do_sample": False,
        "temperature": 0.0,
        "best_of": 9,
        "return_full_text": True,
        "stop": ["x"] * 99,
    }
    assert (await predict(one, {"inputs": "Hello", "parameters": given})).status_code == 200
    sampling = one.source.requests[0].sampling
    assert (sampling.do_sample, sampling.seed, sampling.temperature) == (True, 7, 1.0)
    for parameters in ({}, {"parameters": None}, {"parameters": {}}):
        await predict(one, {"inputs": "Hello", **parameters})
        assert one.source.requests[-1].sampling.do_sample is True


async def test_a_chat_with_its_stream_and_choices_is_one_text(harness):
    answer = await predict(harness(), {**CHAT, "stream": True, "n": 3})
    assert len(answer.json()["predictions"]) == 1


@pytest.mark.case(158)
async def test_no_instances_is_tgis_odd_refusal(harness):
    answer = await predict(harness())
    assert answer.status_code == 422
    assert answer.json() == {"error": "Input validation error", "error_type": "Input validation error"}


@pytest.mark.case(159)
async def test_whatever_happens_to_a_generation_is_told_in_the_same_two_words(harness):
    one = harness()
    one.script("boom", 40, GenerationError("boom"))
    one.script("odd", EOFError)
    for text in ("", "boom", "odd", "x" * 3000):
        answer = await predict(one, {"inputs": "Hello"}, {"inputs": text})
        assert (answer.status_code, answer.json()) == (500, INCOMPLETE)
    answer = await predict(one, {**CHAT, "temperature": -1})
    assert (answer.status_code, answer.json()) == (500, INCOMPLETE)
    assert one.service.in_flight == 0


async def test_more_instances_than_permits_are_refused_without_work(harness):
    one = harness(max_concurrent_requests=3)
    answer = await predict(one, *[{"inputs": "Hello", "parameters": {"max_new_tokens": 1}}] * 3)
    assert answer.status_code == 200
    seen = len(one.source.requests)
    for number in (4, 20_000):
        answer = await predict(one, *[{"inputs": "Hello"}] * number)
        assert (answer.status_code, answer.json()) == (500, INCOMPLETE)
    assert len(one.source.requests) == seen
    assert 'tgi_request_failure{err="overloaded"} 2' in counted(one)


async def test_a_chat_that_the_template_refuses_keeps_its_own_words(harness):
    one = harness(chat_template="{{ raise_exception('roles must alternate') }}")
    answer = await predict(one, {"inputs": "Hello"}, CHAT)
    assert answer.status_code == 422
    assert answer.json() == {"error": "Template error: roles must alternate", "error_type": "template_error"}
    assert one.source.requests == []


async def test_a_server_that_is_not_ready_says_so_to_vertex_too(harness):
    answer = await predict(harness(opened=False), {"inputs": "Hello"})
    assert (answer.status_code, answer.json()["error_type"]) == (503, "unavailable")
    answer = await predict(harness(script=(UnavailableError("the generator is away"),)), {"inputs": "Hello"})
    assert (answer.status_code, answer.json()["error_type"]) == (503, "unavailable")


async def test_the_request_counts_once_and_each_instance_once_more(harness):
    one = harness()
    await predict(one, {"inputs": "a", "parameters": {"max_new_tokens": 1}}, CHAT)
    assert "tgi_request_count 3" in counted(one)
    assert "tgi_request_success 2" in counted(one)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"instances": None},
        {"instances": {}},
        {"instances": "x"},
        {"instances": [5]},
        {"instances": [{}]},
        {"instances": [{"inputs": 5}]},
        {"instances": [{"inputs": "x", "parameters": {"max_new_tokens": "5"}}]},
        {"instances": [{"inputs": "x"}, {"messages": "x"}]},
        {"instances": [{"inputs": "x"}] * 50_000 + [5]},
    ],
)
async def test_a_body_of_wrong_types_is_refused_as_text(harness, body):
    answer = await harness().client.post("/vertex", json=body)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.text.startswith(SCHEMA)


async def test_an_instance_that_fits_no_shape_is_named(harness):
    answer = await predict(harness(), {"inputs": "x"}, {"prompt": "x"})
    assert answer.text.startswith(
        f"{SCHEMA}instances[1]: data did not match any variant of untagged enum VertexInstance"
    )


async def test_a_client_that_leaves_frees_the_slots_of_all_its_instances(harness):
    one = harness()
    one.source.gate.clear()
    wire = Wire(one.app, "/vertex", {"instances": [{"inputs": "a"}, CHAT]})
    await one.source.arrived.wait()
    wire.leave()
    await wire.task
    assert one.service.in_flight == 0
    assert 'tgi_request_failure{err="dropped"} 2' in counted(one)


# -- paths that Vertex AI names ------------------------------------------------------------------------------


async def test_the_paths_that_vertex_names_answer_and_need_no_key(harness, monkeypatch):
    monkeypatch.setenv("AIP_PREDICT_ROUTE", "/v1/endpoints/1/deployedModels/2:predict")
    monkeypatch.setenv("AIP_HEALTH_ROUTE", "v1/endpoints/1/deployedModels/2")
    one = harness(api_key="Secret")
    body = {"instances": [{"inputs": "a", "parameters": {"max_new_tokens": 1}}]}
    answer = await one.client.post("/v1/endpoints/1/deployedModels/2:predict", json=body)
    assert len(answer.json()["predictions"]) == 1
    for method in ("GET", "HEAD"):
        answer = await one.client.request(method, "/v1/endpoints/1/deployedModels/2")
        assert (answer.status_code, answer.content) == (200, b"")
    assert (await one.client.post("/vertex", json=body)).status_code == 401
    answer = await one.client.get("/v1/endpoints/1/deployedModels/2:predict")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize("path", ["/generate", "/vertex", "/", ""])
async def test_a_path_of_ours_stays_what_it_is_and_protected(harness, monkeypatch, path):
    monkeypatch.setenv("AIP_PREDICT_ROUTE", path)
    monkeypatch.setenv("AIP_HEALTH_ROUTE", "/health")
    one = harness(api_key="Secret")
    assert (await one.client.post("/generate", json=GENERATE)).status_code == 401
    key = {"authorization": "Bearer Secret"}
    assert "generated_text" in (await one.client.post("/generate", json=GENERATE, headers=key)).json()
    assert (await one.client.get("/")).status_code == 200


async def test_without_these_variables_there_are_no_such_paths(harness, monkeypatch):
    monkeypatch.delenv("AIP_PREDICT_ROUTE", raising=False)
    assert (await harness().client.post("/predict", json={"instances": []})).status_code == 404
