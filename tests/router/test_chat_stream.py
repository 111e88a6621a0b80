"""Chat as a stream of chunks (conformance cases 124 to 131)."""

from __future__ import annotations

import asyncio
import json
import uuid

import pytest
from chat_requests import NO_TOOL, PATH, WEATHER, ask, chat, counted, events, writes
from conformance import OPENAI_FORMS, REAL_STATUS
from raw_request import Wire

from neuron_server.errors import GenerationError
from neuron_server.router import chat as chat_route

ARGUMENTS = ' "location": "Zürich 😀", "days": 2}'
CALL = '{"function": {"_name": "get_weather",' + ARGUMENTS + "}"


def choices(found: list[dict]) -> list[dict]:
    return [event["choices"][0] for event in found]


def arguments(found: list[dict]) -> str:
    calls = [choice["delta"]["tool_calls"][0] for choice in choices(found)]
    return "".join(call["function"]["arguments"] for call in calls)


# -- words ---------------------------------------------------------------------------------------------------


@pytest.mark.case(124, 126)
async def test_every_chunk_has_tgis_keys_in_tgis_order(harness, tokenizer):
    one = writes(harness(), tokenizer, "ab")
    answer = await ask(one, stream=True)
    assert answer.status_code == 200
    first = json.loads(answer.text.split("\n")[0][6:])
    head = (
        f'data: {{"object":"chat.completion.chunk","id":"","created":{first["created"]},"model":"M",'
        f'"system_fingerprint":"{first["system_fingerprint"]}","choices":[{{"index":0,'
    )
    assert answer.text == (
        f'{head}"delta":{{"role":"assistant","content":"a"}},"logprobs":null,"finish_reason":null}}],"usage":null}}\n\n'
        f'{head}"delta":{{"role":"assistant","content":"b"}},"logprobs":null,"finish_reason":null}}],"usage":null}}\n\n'
        f'{head}"delta":{{"role":"assistant","content":""}},"logprobs":null,"finish_reason":"stop"}}],"usage":null}}\n\n'
        "data: [DONE]\n\n"
    )


async def test_the_headers_are_those_of_a_stream(harness):
    answer = await ask(harness(), stream=True, max_tokens=1)
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.headers["cache-control"] == "no-cache"
    assert sorted(name for name in answer.headers if name.startswith("x-")) == [
        "x-accel-buffering",
        "x-compute-characters",
        "x-compute-type",
    ]


async def test_model_and_fingerprint_are_those_of_the_whole_answer(harness):
    one = harness()
    for model in (None, "tgi", 'gpt-"x"\n'):
        whole = (await ask(one, model=model, max_tokens=1)).json()
        for event in events(await ask(one, model=model, max_tokens=2, stream=True)):
            assert event["model"] == whole["model"]
            assert event["system_fingerprint"] == whole["system_fingerprint"]


@pytest.mark.parametrize(
    ("fields", "reason", "texts"),
    [
        pytest.param({"max_tokens": 2}, "length", ["a", "b"], marks=pytest.mark.case(124)),
        ({}, "stop", ["a", "b", "c", ""]),
        pytest.param({"stop": ["bc"]}, "stop_sequence", ["a", "b", "c"], marks=pytest.mark.case(127)),
        pytest.param(
            {"stop": "b"},
            "stop_sequence",
            ["a", "b"],
            marks=pytest.mark.case(106, deviation=OPENAI_FORMS),
        ),
    ],
)
async def test_only_the_last_chunk_says_why_it_is_the_last(harness, tokenizer, fields, reason, texts):
    found = choices(events(await ask(writes(harness(), tokenizer, "abc"), stream=True, **fields)))
    assert [choice["delta"]["content"] for choice in found] == texts
    assert [choice["delta"]["role"] for choice in found] == ["assistant"] * len(found)
    assert [choice["finish_reason"] for choice in found] == [None] * (len(found) - 1) + [reason]


@pytest.mark.case(125)
async def test_usage_is_one_more_chunk_and_only_when_asked_for(harness, tokenizer):
    one = writes(harness(), tokenizer, "ab")
    for options in ({}, {"stream_options": {}}, {"stream_options": {"include_usage": False}}):
        assert [event["usage"] for event in events(await ask(one, stream=True, **options))] == [None] * 3
    *chunks, last = events(await ask(one, stream=True, stream_options={"include_usage": True}))
    assert [event["usage"] for event in chunks] == [None] * 3
    assert last["choices"] == []
    assert list(last) == list(chunks[0])
    prompt = one.source.requests[0].prompt_length
    assert last["usage"] == {"prompt_tokens": prompt, "completion_tokens": 3, "total_tokens": prompt + 3}


async def test_log_probabilities_are_one_to_a_chunk(harness):
    one = harness(script=(40, 41))
    found = choices(events(await ask(one, stream=True, max_tokens=2, logprobs=True, top_logprobs=2)))
    for choice in found:
        (content,) = choice["logprobs"]["content"]
        assert list(content) == ["token", "logprob", "top_logprobs"]
        assert content["token"] == choice["delta"]["content"]
        assert [top["logprob"] for top in content["top_logprobs"]] == [-1.0, -2.0]
    found = choices(events(await ask(one, stream=True, max_tokens=2, top_logprobs=2)))
    assert [choice["logprobs"] for choice in found] == [None, None]


async def test_characters_of_several_tokens_are_whole_and_not_escaped(harness, tokenizer):
    answer = await ask(writes(harness(), tokenizer, 'é😀"\n'), stream=True)
    assert "😀" in answer.text
    assert "".join(choice["delta"]["content"] for choice in choices(events(answer))) == 'é😀"\n'


@pytest.mark.case(128, 129, deviation=REAL_STATUS)
async def test_refusals_keep_their_status(harness):
    answer = await ask(harness(), "x" * 2000, stream=True)
    assert answer.status_code == 422
    text = "Input validation error: `inputs` must have less than 1024 tokens. Given: 2018"
    assert answer.json() == {"error": text, "error_type": "validation"}
    answer = await ask(harness(max_concurrent_requests=0), stream=True)
    assert answer.status_code == 429
    assert answer.json() == {"error": "Model is overloaded", "error_type": "overloaded"}
    assert (await ask(harness(script=(GenerationError("boom"),)), stream=True)).status_code == 424


async def test_a_failure_in_mid_stream_is_openais_error_and_then_done(harness):
    one = harness(script=(72, GenerationError("boom")))
    first, last = events(await ask(one, stream=True))
    assert first["choices"]
    text = "Request failed during generation: Server error: boom"
    assert last == {"error": {"message": text, "http_status_code": 422}}
    assert one.service.in_flight == 0


# -- tools ---------------------------------------------------------------------------------------------------


async def test_a_call_begins_with_its_name_and_adds_up_to_its_arguments(harness, tokenizer):
    one = writes(harness(), tokenizer, CALL)
    found = events(await ask(one, stream=True, tools=[WEATHER], tool_choice="required"))
    first, *others = choices(found)
    assert first == {
        "index": 0,
        "delta": {
            "role": "assistant",
            "tool_calls": [
                {
                    "index": 0,
                    "id": "0",
                    "type": "function",
                    "function": {"name": "get_weather", "arguments": "{"},
                }
            ],
        },
        "logprobs": None,
        "finish_reason": None,
    }
    for choice in others:
        (call,) = choice["delta"]["tool_calls"]
        assert {**call, "function": None} == {"index": 0, "id": "0", "type": "function", "function": None}
        assert call["function"]["name"] is None
    assert arguments(found) == "{" + ARGUMENTS
    assert [choice["finish_reason"] for choice in others] == [None] * len(others)


async def test_the_streamed_call_is_the_whole_one(harness, tokenizer):
    one = writes(harness(), tokenizer, CALL[:-1] + "\n}")
    whole = (await ask(one, tools=[WEATHER])).json()["choices"][0]["message"]["tool_calls"][0]["function"]
    found = events(await ask(one, stream=True, tools=[WEATHER]))
    assert json.loads(arguments(found)) == json.loads(whole["arguments"])


async def test_after_a_whole_call_only_the_usage_follows(harness, tokenizer):
    one = writes(harness(), tokenizer, CALL)
    options = {"include_usage": True}
    *_, before, last = events(await ask(one, stream=True, tools=[WEATHER], stream_options=options))
    assert before["choices"][0]["delta"]["tool_calls"][0]["function"] == {"name": None, "arguments": ""}
    assert before["choices"][0]["finish_reason"] is None
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == len(tokenizer.encode(CALL)) + 1


async def test_a_call_without_arguments_is_an_empty_object(harness, tokenizer):
    one = writes(harness(), tokenizer, '{"function":{"_name":"get_weather"}}')
    found = events(await ask(one, stream=True, tools=[WEATHER]))
    assert [choice["delta"]["tool_calls"][0]["function"] for choice in choices(found)] == [
        {"name": "get_weather", "arguments": "{"},
        {"name": None, "arguments": "}"},
        {"name": None, "arguments": ""},  # the token of the envelope's own brace
    ]


@pytest.mark.parametrize(
    ("fields", "reason"), [({"max_tokens": 50}, "length"), ({"stop": ["Z"]}, "stop_sequence")]
)
async def test_a_call_that_is_cut_says_so_with_what_there_is(harness, tokenizer, fields, reason):
    one = writes(harness(), tokenizer, CALL)
    found = events(await ask(one, stream=True, tools=[WEATHER], **fields))
    assert choices(found)[-1]["finish_reason"] == reason
    assert ("{" + ARGUMENTS).startswith(arguments(found))
    assert arguments(found) != "{" + ARGUMENTS


async def test_a_call_that_ends_with_the_last_token_allowed_says_both(harness, tokenizer):
    one = writes(harness(), tokenizer, CALL)
    found = events(await ask(one, stream=True, tools=[WEATHER], max_tokens=len(tokenizer.encode(CALL))))
    assert arguments(found) == "{" + ARGUMENTS
    assert choices(found)[-1]["finish_reason"] == "length"


@pytest.mark.parametrize("fields", [{"max_tokens": 5}, {"stop": ["function"]}, {"stop": ["{"]}])
async def test_an_answer_that_ends_before_the_name_is_refused_with_a_status(harness, tokenizer, fields):
    one = writes(harness(), tokenizer, CALL)
    answer = await ask(one, stream=True, tools=[WEATHER], **fields)
    assert answer.status_code == 422
    assert answer.json()["error_type"] == "tool_error"
    assert answer.json()["error"].startswith("Tool error: Failed to parse generated text:")
    assert one.service.in_flight == 0


async def test_text_that_is_no_call_at_all_is_refused_too(harness, tokenizer):
    for text in ("Hello", '{"function": {"_name": "\\ud800"', ""):
        answer = await ask(writes(harness(), tokenizer, text), stream=True, tools=[WEATHER])
        assert (answer.status_code, answer.json()["error_type"]) == (422, "tool_error")


async def test_ids_count_on_from_earlier_calls(harness, tokenizer):
    one = writes(harness(), tokenizer, CALL)
    for earlier, wanted in (("0", "1"), ("41", "42"), ("call_x", None)):
        call = {"id": earlier, "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
        messages = [
            {"role": "user", "content": "w?"},
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": earlier, "content": "6.7"},
        ]
        body = {"messages": messages, "tools": [WEATHER], "stream": True}
        found = choices(events(await one.client.post(PATH, json=body)))
        ids = {choice["delta"]["tool_calls"][0]["id"] for choice in found}
        assert len(ids) == 1
        assert ids == {wanted} or (wanted is None and uuid.UUID(ids.pop()).version == 4)


@pytest.mark.parametrize("name", ['say "hi"\\', "名前/é", "a\tb"])
async def test_names_that_need_escapes_come_out_as_they_went_in(harness, tokenizer, name):
    call = json.dumps({"function": {"_name": name, "a": "}"}}, ensure_ascii=False)
    tool = {"type": "function", "function": {"name": name, "parameters": {"properties": {"a": {}}}}}
    one = writes(harness(), tokenizer, call)
    found = events(await ask(one, stream=True, tools=[tool]))
    assert choices(found)[0]["delta"]["tool_calls"][0]["function"]["name"] == name
    assert json.loads(arguments(found)) == {"a": "}"}
    whole = (await ask(one, tools=[tool])).json()["choices"][0]["message"]["tool_calls"][0]["function"]
    assert (whole["name"], whole["arguments"]) == (name, '{"a":"}"}')


@pytest.mark.case(131)
async def test_declining_to_call_streams_a_second_generation_and_nothing_of_the_first(harness, tokenizer):
    one, other = harness(), writes(harness(), tokenizer, "Hello")
    writes(one, tokenizer, NO_TOOL, "Hello")
    options = {"stream": True, "stream_options": {"include_usage": True}}
    answer, plain = await ask(one, tools=[WEATHER], **options), await ask(other, **options)

    def shown(answer):
        return [{**event, "created": 0} for event in events(answer)]

    assert shown(answer) == shown(plain)
    assert answer.headers["x-compute-characters"] == plain.headers["x-compute-characters"]
    first, second = one.source.requests
    assert first.grammar is not None
    assert second.grammar is None
    lines = counted(one)
    assert "tgi_request_count 3" in lines
    assert "tgi_request_success 1" in lines
    assert not [line for line in lines if line.startswith("tgi_request_failure")]
    assert one.service.in_flight == 0


async def test_the_first_generation_ends_where_it_declines(harness, tokenizer):
    one = writes(harness(), tokenizer, NO_TOOL[:-2] + ' , "x": "' + "y" * 500, "Hello")
    running = []
    plain = one.source.stream

    async def stream(request):
        count = 0
        try:
            async for event in plain(request):
                count += 1
                yield event
        finally:
            running.append(count)

    one.source.stream = stream
    found = events(await ask(one, stream=True, tools=[WEATHER]))
    assert "".join(choice["delta"]["content"] for choice in choices(found)) == "Hello"
    assert running[0] == len(tokenizer.encode(NO_TOOL[:-2]))


async def test_the_second_generation_is_refused_with_its_own_status(harness, tokenizer):
    one = writes(harness(), tokenizer, NO_TOOL)
    plain, requests = one.source.stream, one.source.requests

    async def then_fails(request):
        if requests:
            raise GenerationError("boom")
        async for event in plain(request):
            yield event

    one.source.stream = then_fails
    answer = await ask(one, stream=True, tools=[WEATHER])
    assert answer.status_code == 424
    assert one.service.in_flight == 0


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_client_that_leaves_between_the_generations_frees_everything(
    harness, tokenizer, monkeypatch, streamed
):
    one = writes(harness(), tokenizer, NO_TOOL, "Hello")
    prepare, between, gone = chat_route.prepare_chat, asyncio.Event(), asyncio.Event()

    async def slow(service, request, **told):
        if request.tools is None:
            between.set()
            try:
                await asyncio.Event().wait()
            finally:
                gone.set()
        return await prepare(service, request, **told)

    monkeypatch.setattr(chat_route, "prepare_chat", slow)
    wire = Wire(one.app, PATH, chat(tools=[WEATHER], stream=streamed))
    await between.wait()
    assert one.service.in_flight == 0  # the first is over, and holds nothing while the second is prepared
    wire.leave()
    await gone.wait()
    await wire.task
    assert one.service.in_flight == 0
    assert len(one.source.requests) == 1


async def test_a_client_that_leaves_in_mid_call_frees_what_it_held(harness, tokenizer):
    one = writes(harness(), tokenizer, CALL)
    wire = Wire(one.app, PATH, chat(tools=[WEATHER], stream=True))
    assert b'"name":"get_weather"' in await wire.body()
    one.source.gate.clear()
    wire.leave()
    await one.source.closed.wait()
    await wire.task
    assert one.service.in_flight == 0
    assert 'tgi_request_failure{err="dropped"} 1' in counted(one)


async def test_a_stream_that_begins_late_is_kept_alive_and_tells_errors_as_events(
    harness, tokenizer, monkeypatch
):
    monkeypatch.setattr("neuron_server.router.sse.begin.__kwdefaults__", {"patience_s": 0.01})
    one = writes(harness(), tokenizer, "Hello")
    one.source.gate.clear()
    wire = Wire(one.app, PATH, chat(tools=[WEATHER], stream=True))
    assert await wire.body() == b":\n\n"
    one.source.gate.set()
    event = await wire.body()
    assert b'"message":"Tool error: Failed to parse generated text: ' in event
    assert await wire.body() == b"data: [DONE]\n\n"
    await wire.task
