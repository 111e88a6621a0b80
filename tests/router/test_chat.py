"""Chat in one answer (conformance cases 98 to 112 and 115 to 123)."""

from __future__ import annotations

import asyncio
import json
import time
from importlib import metadata

import orjson
import pytest
from chat_requests import NO_TOOL, PATH, WEATHER, ask, chat, counted, writes
from raw_request import Wire

from neuron_server.errors import GenerationError

CALL = '{"function": {"_name": "get_weather", "location": "Zürich", "days": 2}}'
case = pytest.mark.case
TIMES = ["x-compute-time", "x-total-time", "x-validation-time", "x-queue-time", "x-inference-time"]


def refused(answer) -> tuple[int, str, str]:
    assert answer.headers["content-type"] == "application/json"
    assert not [name for name in answer.headers if name.startswith("x-")]
    return answer.status_code, answer.json()["error_type"], answer.json()["error"]


# -- words ---------------------------------------------------------------------------------------------------


@pytest.mark.case(98)
async def test_an_answer_has_tgis_keys_in_tgis_order(harness, tokenizer):
    one = writes(harness(), tokenizer, "Grüezi")
    began = int(time.time())
    answer = await ask(one, model="tgi", max_tokens=50)
    assert answer.status_code == 200
    created = answer.json()["created"]
    assert began <= created <= time.time()
    prompt = len(one.source.requests[0].input_ids)
    assert answer.text == (
        f'{{"object":"chat.completion","id":"","created":{created},"model":"M",'
        f'"system_fingerprint":"{metadata.version("neuronx-tgi")}-native",'
        '"choices":[{"index":0,"message":{"role":"assistant","content":"Grüezi"},"logprobs":null,'
        '"finish_reason":"stop"}],'
        f'"usage":{{"prompt_tokens":{prompt},"completion_tokens":8,"total_tokens":{prompt + 8}}}}}'
    )


async def test_the_headers_are_those_of_a_one_shot_answer(harness):
    one = harness()
    answer = await ask(one, "é", max_tokens=3)
    headers = answer.headers
    assert headers["content-type"] == "application/json"
    assert headers["x-compute-type"] == "gpu+optimized"
    assert int(headers["x-compute-characters"]) >= 1
    assert headers["x-prompt-tokens"] == str(answer.json()["usage"]["prompt_tokens"])
    assert headers["x-generated-tokens"] == "3"
    assert all(name in headers for name in (*TIMES, "x-time-per-token"))


async def test_the_fingerprint_ends_with_the_images_label(harness, monkeypatch):
    monkeypatch.setenv("DOCKER_LABEL", "sha-1234567")
    assert (await ask(harness(), max_tokens=1)).json()["system_fingerprint"].endswith("-sha-1234567")


@pytest.mark.case(99)
@pytest.mark.parametrize(
    ("model", "shown"), [(None, "M"), ("tgi", "M"), ("gpt-x", "gpt-x"), ("", ""), ('"é', '"é')]
)
async def test_another_model_is_echoed_and_is_no_adapter(harness, model, shown):
    answer = await ask(harness(), model=model, max_tokens=1)
    assert answer.status_code == 200
    assert answer.json()["model"] == shown


async def test_reasons_to_end_are_openais_but_for_stop_sequence(harness, tokenizer):
    one = writes(harness(), tokenizer, "abc")
    cases = [({"max_tokens": 9}, "stop"), ({"max_tokens": 2}, "length"), ({"stop": ["b"]}, "stop_sequence")]
    cases.append(({"stop": "b"}, "stop_sequence"))  # as OpenAI has it
    for fields, reason in cases:
        (choice,) = (await ask(one, **fields)).json()["choices"]
        assert choice["finish_reason"] == reason
        assert choice["message"]["content"] == ("abc" if reason == "stop" else "ab")


@pytest.mark.case(100, 101, 104)
async def test_temperature_zero_is_greedy_and_everything_else_samples(harness):
    one = harness()
    for fields, samples in (({"temperature": 0}, False), ({"temperature": 0.0}, False), ({}, True)):
        await ask(one, max_tokens=1, **fields)
        sampling = one.source.requests[-1].sampling
        assert (sampling.do_sample, sampling.temperature) == (samples, 1.0)
    await ask(
        one, max_tokens=1, temperature=0.5, seed=3, presence_penalty=0.5, frequency_penalty=-1, top_p=0.9
    )
    sampling = one.source.requests[-1].sampling
    assert (sampling.temperature, sampling.seed, sampling.repetition_penalty) == (0.5, 3, 2.5)
    assert (sampling.frequency_penalty, round(sampling.top_p, 6)) == (-1.0, 0.9)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        pytest.param({"temperature": -1}, "`temperature` must be strictly positive", marks=case(102)),
        pytest.param({"top_p": 1.0}, "`top_p` must be > 0.0 and < 1.0", marks=case(103)),
        pytest.param(
            {"presence_penalty": -2}, "`repetition_penalty` must be strictly positive", marks=case(104)
        ),
        pytest.param({"top_logprobs": 6}, "`top_n_tokens` must be >= 0 and <= 5. Given: 6", marks=case(110)),
        ({"max_tokens": 0}, "`max_new_tokens` must be strictly positive"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
async def test_parameters_are_checked_as_tgis(harness, fields, text, streamed):
    answer = await ask(harness(), stream=streamed, **fields)
    assert refused(answer) == (422, "validation", f"Input validation error: {text}")


@pytest.mark.case(109)
async def test_log_probabilities_have_no_bytes_and_are_shown_only_when_asked_for(harness):
    one = harness(script=(40, 41))
    choice = (await ask(one, max_tokens=2, logprobs=True, top_logprobs=2)).json()["choices"][0]
    content = choice["logprobs"]["content"]
    assert list(choice["logprobs"]) == ["content"]
    assert [list(token) for token in content] == [["token", "logprob", "top_logprobs"]] * 2
    assert [token["logprob"] for token in content] == [-0.34, -0.34]
    assert [[top["logprob"] for top in token["top_logprobs"]] for token in content] == [[-1.0, -2.0]] * 2
    assert list(content[0]["top_logprobs"][0]) == ["token", "logprob"]
    alone = (await ask(one, max_tokens=2, logprobs=True)).json()["choices"][0]["logprobs"]["content"]
    assert [token["top_logprobs"] for token in alone] == [[], []]
    hidden = await ask(one, max_tokens=2, top_logprobs=2)
    assert hidden.json()["choices"][0]["logprobs"] is None
    assert one.source.requests[-1].sampling.top_n_tokens == 2


async def test_a_log_probability_that_nobody_computed_is_null(harness):
    one = harness()
    one.source.logprob = None
    content = (await ask(one, max_tokens=1, logprobs=True)).json()["choices"][0]["logprobs"]["content"]
    assert content[0]["logprob"] is None


@pytest.mark.case(107, 108)
async def test_there_is_one_choice_whatever_n_says(harness):
    answer = await ask(harness(), n=3, logit_bias=None, tool_choice=None, max_tokens=1)
    assert len(answer.json()["choices"]) == 1


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"logit_bias": {"1": 2}}, marks=case(107)),
        pytest.param({"stream_options": None}, marks=case(108)),
        pytest.param({"max_tokens": 5, "max_completion_tokens": 5}, marks=case(105)),
        pytest.param({"messages": [{"role": "user", "content": None}]}, marks=case(111)),
        pytest.param({"tools": [{"type": "function", "function": {"name": "f"}}]}, marks=case(119)),
        {"messages": None},
    ],
)
async def test_bodies_that_do_not_fit_are_refused_in_words(harness, fields):
    answer = await ask(harness(), **fields)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.text.startswith("Failed to deserialize the JSON body into the target type: ")


@pytest.mark.parametrize("deep", ["[" * 110 + "]" * 110, "[" * 400 + "]" * 400])
async def test_deep_bodies_are_served_or_refused_and_never_a_defect(harness, tokenizer, deep):
    one = writes(harness(), tokenizer, CALL)
    function = f'{{"name":"f","arguments":{deep}}}'
    called = f'{{"role":"assistant","tool_calls":[{{"id":"0","type":"function","function":{function}}}]}}'
    said = '{"role":"user","content":"Hi"}'
    offered = f'[{json.dumps(WEATHER)},{{"type":"function","function":{function}}}]'
    tools = f'"tool_choice":"required","tools":{offered}'
    for body in (f'{{"messages":[{called}]}}', f'{{"messages":[{said}],{tools}}}'):
        answer = await one.client.post(PATH, content=body, headers={"content-type": "application/json"})
        assert answer.status_code == (200 if len(deep) < 300 else 400)


async def test_a_chat_counts_once_for_its_handler_and_once_for_its_generation(harness):
    one = harness()
    await ask(one, max_tokens=1)
    assert "tgi_request_count 2" in counted(one)
    assert "tgi_request_success 1" in counted(one)
    await ask(one, stream=True, max_tokens=1)
    assert "tgi_request_count 4" in counted(one)


RAISES = (
    "{% if messages|length > 1 %}{{ raise_exception('one at a time') }}{% endif %}{{ messages[0].content }}"
)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("template", "text", "counts"),
    [
        pytest.param(None, "template not found", False, marks=case(115)),
        pytest.param(RAISES, "one at a time", True, marks=case(116)),
    ],
)
async def test_what_the_template_refuses_has_a_real_status(harness, streamed, template, text, counts):
    one = harness(chat_template=template)
    twice = {"messages": [{"role": "user", "content": "Hi"}] * 2, "stream": streamed}
    answer = await one.client.post(PATH, json=twice)
    assert refused(answer) == (422, "template_error", f"Template error: {text}")
    assert ('tgi_request_failure{err="template"} 1' in counted(one)) is counts
    assert "tgi_request_count 1" in counted(one)


async def test_an_overloaded_server_says_so_even_to_an_invalid_chat(harness):
    one = harness(max_concurrent_requests=0)
    for fields in ({}, {"stream": True}, {"temperature": -1}):
        assert refused(await ask(one, **fields)) == (429, "overloaded", "Model is overloaded")


async def test_a_failure_is_one_error_and_no_part_of_the_answer(harness):
    one = harness(script=(40, GenerationError("boom")))
    text = "Request failed during generation: Server error: boom"
    assert refused(await ask(one)) == (424, "generation", text)
    assert one.service.in_flight == 0


async def test_a_server_that_is_loading_or_draining_refuses(harness):
    assert (await ask(harness(opened=False))).status_code == 503
    one = harness()
    one.service.drain()
    for streamed in (False, True):
        assert (await ask(one, stream=streamed)).status_code == 503


# -- tools ---------------------------------------------------------------------------------------------------


@pytest.mark.case(121)
async def test_a_call_is_a_message_without_content(harness, tokenizer):
    one = writes(harness(), tokenizer, CALL)
    for choice in (
        "get_weather",
        "required",
        "auto",
        {"type": "function", "function": {"name": "get_weather"}},
    ):
        answer = await ask(one, tools=[WEATHER], tool_choice=choice)
        (told,) = answer.json()["choices"]
        assert orjson.dumps(told["message"]).decode() == (
            '{"role":"assistant","tool_calls":[{"id":"0","type":"function","function":{"description":null,'
            '"name":"get_weather","arguments":"{\\"location\\":\\"Zürich\\",\\"days\\":2}"}}]}'
        )
        assert (told["finish_reason"], told["logprobs"]) == ("stop", None)
    assert len(one.source.requests) == 4


async def test_the_generation_of_a_call_is_held_to_the_grammar_of_the_tools(harness, tokenizer):
    one = writes(harness(), tokenizer, CALL)
    await ask(one, tools=[WEATHER], tool_choice="required")
    grammar = one.source.requests[0].grammar
    assert grammar.kind == "json_schema"
    assert list(json.loads(grammar.text)["$functions"]) == ["get_weather"]


async def test_a_call_whose_id_would_not_be_the_first_still_has_id_0(harness, tokenizer):
    one = writes(harness(), tokenizer, CALL)
    earlier = {"id": "7", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "w?"},
        {"role": "assistant", "content": None, "tool_calls": [earlier]},
        {"role": "tool", "tool_call_id": "7", "content": "6.7"},
    ]
    answer = await one.client.post(PATH, json={"messages": messages, "tools": [WEATHER]})
    assert answer.json()["choices"][0]["message"]["tool_calls"][0]["id"] == "0"


@pytest.mark.case(120)
async def test_tools_that_are_not_wanted_leave_an_ordinary_chat(harness, tokenizer):
    one = writes(harness(), tokenizer, "Hello")
    for fields in ({"tool_choice": "none", "tools": [WEATHER]}, {"tool_choice": "required", "tools": []}):
        message = (await ask(one, **fields)).json()["choices"][0]["message"]
        assert message == {"role": "assistant", "content": "Hello"}
    assert [request.grammar for request in one.source.requests] == [None, None]


@pytest.mark.case(131)
async def test_declining_to_call_answers_from_a_second_generation_without_tools(harness, tokenizer):
    one = writes(harness(), tokenizer, NO_TOOL, "Hello")
    plain = await ask(writes(harness(), tokenizer, "Hello"))
    answer = await ask(one, tools=[WEATHER])
    assert {**answer.json(), "created": 0} == {**plain.json(), "created": 0}
    for name in ("x-compute-characters", "x-prompt-tokens", "x-generated-tokens"):
        assert answer.headers[name] == plain.headers[name]
    first, second = one.source.requests
    assert first.grammar is not None
    assert second.grammar is None
    assert first.prompt_length > second.prompt_length
    assert "tgi_request_count 3" in counted(one)
    assert "tgi_request_success 2" in counted(one)


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_drain_waits_for_the_second_generation_and_does_not_refuse_it(harness, tokenizer, streamed):
    one = writes(harness(), tokenizer, NO_TOOL, "Hello")
    one.source.gate.clear()
    running = asyncio.create_task(ask(one, tools=[WEATHER], stream=streamed))
    await one.source.arrived.wait()
    one.service.drain()
    idle = asyncio.create_task(one.service.idle())
    one.source.gate.set()
    await idle
    assert len(one.source.requests) == 2
    answer = await running
    assert answer.status_code == 200
    assert "Hello" in answer.text
    assert (await ask(one)).status_code == 503


async def test_an_empty_list_of_tools_takes_both_generations(harness, tokenizer):
    one = writes(harness(), tokenizer, NO_TOOL, "Hello")
    assert (await ask(one, tools=[])).json()["choices"][0]["message"]["content"] == "Hello"
    assert len(one.source.requests) == 2


async def test_a_required_tool_that_happens_to_be_called_no_tool_is_called(harness, tokenizer):
    one = writes(harness(), tokenizer, NO_TOOL)
    tool = {"type": "function", "function": {"name": "no_tool", "parameters": {}}}
    message = (await ask(one, tools=[tool], tool_choice="required")).json()["choices"][0]["message"]
    assert message["tool_calls"][0]["function"] == {"description": None, "name": "no_tool", "arguments": "{}"}


@pytest.mark.case(117, 118)
@pytest.mark.parametrize("streamed", [False, True])
async def test_tools_that_do_not_fit_are_refused_with_a_real_status(harness, streamed):
    one = harness()
    answer = await ask(one, tools=[WEATHER], tool_choice="g", stream=streamed)
    assert refused(answer) == (422, "tool_error", "Tool error: Tool with name g not found")
    wanted = {"type": "json_object", "value": {"properties": {}}}
    answer = await ask(one, tools=[], response_format=wanted, stream=streamed)
    assert refused(answer) == (422, "tool_error", "Tool error: Grammar and tools are mutually exclusive")
    assert one.source.requests == []
    assert "tgi_request_count 2" in counted(one)
    assert not [line for line in counted(one) if line.startswith("tgi_request_failure")]


@pytest.mark.case(122)
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("tools", [[], [WEATHER]])
async def test_without_grammars_there_are_no_tools(harness, streamed, tools):
    one = harness(disable_grammar_support=True)
    answer = await ask(one, tools=tools, stream=streamed)
    assert refused(answer) == (422, "validation", "Input validation error: grammar is not supported")
    assert (await ask(one, tools=tools, tool_choice="none", max_tokens=1)).status_code == 200


@pytest.mark.parametrize(
    "fields", [{"max_tokens": 50}, {"max_tokens": 5}, {"stop": ["loc"]}, {"stop": ["Z"]}, {"stop": ["{"]}]
)
async def test_a_call_that_is_cut_is_refused(harness, tokenizer, fields):
    one = writes(harness(), tokenizer, CALL)
    status, kind, text = refused(await ask(one, tools=[WEATHER], **fields))
    assert (status, kind) == (422, "tool_error")
    assert text.startswith("Tool error: Failed to parse generated text:")
    assert one.service.in_flight == 0


async def test_a_call_that_ends_with_the_last_token_allowed_is_whole(harness, tokenizer):
    one = writes(harness(), tokenizer, CALL)
    (choice,) = (await ask(one, tools=[WEATHER], max_tokens=len(tokenizer.encode(CALL)))).json()["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"][0]["function"]["name"] == "get_weather"


async def test_the_second_generation_may_be_refused_like_any_other(harness, tokenizer):
    one = writes(harness(), tokenizer, NO_TOOL)
    plain = one.source.stream

    def then_full(request):
        one.service.config = one.service.config.__class__(**{**_fields(one), "max_concurrent_requests": 0})
        return plain(request)

    one.source.stream = then_full
    assert (await ask(one, tools=[WEATHER])).status_code == 429
    assert one.service.in_flight == 0


def _fields(one) -> dict:
    config = one.service.config
    return {name: getattr(config, name) for name in config.__dataclass_fields__}


async def test_log_probabilities_of_a_call_are_those_of_its_tokens(harness, tokenizer):
    one = writes(harness(), tokenizer, CALL)
    choice = (await ask(one, tools=[WEATHER], logprobs=True)).json()["choices"][0]
    text = "".join(token["token"] for token in choice["logprobs"]["content"])
    assert text == CALL + "</s>"


# -- clients that leave --------------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("turn", [1, 2])
async def test_a_client_that_leaves_frees_what_it_held_in_either_generation(
    harness, tokenizer, streamed, turn
):
    one = writes(harness(), tokenizer, NO_TOOL, "Hello")
    source, plain, working = one.source, one.source.stream, []

    async def stream(request):
        working.append(request)
        source.closed.clear()
        source.arrived.clear()
        if len(working) == turn:
            source.gate.clear()
        async for event in plain(request):
            yield event

    source.stream = stream
    wire = Wire(one.app, PATH, chat(tools=[WEATHER], stream=streamed))
    while len(source.requests) < turn:
        source.arrived.clear()
        await source.arrived.wait()
    wire.leave()
    await source.closed.wait()
    await wire.task
    assert one.service.in_flight == 0
    assert len(source.requests) == turn
    assert 'tgi_request_failure{err="dropped"} 1' in counted(one)
