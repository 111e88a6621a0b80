"""``/tokenize`` and ``/chat_tokenize`` (conformance cases 113, 114 and 149 to 153)."""

from __future__ import annotations

import asyncio

import pytest

from neuron_server.router import tokenize as tokenize_module
from neuron_server.text.tokenizer import LONG_TEXT_CHARS

CHAT = {"messages": [{"role": "user", "content": "Hello"}]}


async def tokenize(one, inputs: str, **fields):
    answer = await one.client.post("/tokenize", json={"inputs": inputs, **fields})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    return answer.json()


async def chat_tokenize(one, messages, **fields):
    return await one.client.post("/chat_tokenize", json={"messages": messages, **fields})


@pytest.mark.case(149)
async def test_a_text_is_a_list_of_its_tokens(harness):
    tokens = await tokenize(harness(), "Hello Hello!")
    assert [list(token) for token in tokens] == [["id", "text", "start", "stop"]] * 3
    assert [(t["text"], t["start"], t["stop"]) for t in tokens] == [
        ("Hello", 0, 5),
        (" Hello", 5, 11),
        ("!", 11, 12),
    ]


@pytest.mark.case(150)
async def test_places_are_counted_in_bytes(harness):
    tokens = await tokenize(harness(), "é a")
    assert {(t["text"], t["start"], t["stop"]) for t in tokens} == {("é", 0, 2), (" ", 2, 3), ("a", 3, 4)}


@pytest.mark.case(151)
async def test_truncate_and_every_other_parameter_are_ignored(harness):
    one = harness()
    parameters = {"truncate": 1, "temperature": -1.0, "max_new_tokens": 0, "watermark": True}
    assert len(await tokenize(one, "a" * 5000, parameters=parameters)) == 5000


@pytest.mark.case(152)
async def test_an_empty_text_has_no_tokens(harness):
    assert await tokenize(harness(), "") == []


@pytest.mark.case(42)
async def test_no_permit_is_taken(harness):
    one = harness(max_concurrent_requests=1)
    one.source.gate.clear()
    running = asyncio.create_task(one.generate(max_new_tokens=1))
    await one.source.arrived.wait()
    assert (await one.generate()).status_code == 429
    assert len(await tokenize(one, "Hello")) == 1
    assert (await chat_tokenize(one, CHAT["messages"])).status_code == 200
    one.source.gate.set()
    assert (await running).status_code == 200


async def test_a_long_text_is_cut_beside_the_event_loop(harness):
    tokens = await tokenize(harness(), "é" * LONG_TEXT_CHARS * 2)
    assert len(tokens) == LONG_TEXT_CHARS * 4
    assert tokens[-1]["stop"] == LONG_TEXT_CHARS * 4


@pytest.mark.parametrize("at_once", [1, 3, 10, 11, 4096])
async def test_tokens_that_are_written_a_few_at_a_time_are_one_list(harness, monkeypatch, at_once):
    monkeypatch.setattr(tokenize_module, "_AT_ONCE", at_once)
    assert [token["start"] for token in await tokenize(harness(), "a" * 10)] == list(range(10))


@pytest.mark.parametrize("path", ["/tokenize", "/chat_tokenize"])
async def test_a_wrong_body_is_422_text(harness, path):
    answer = await harness().client.post(path, json={"inputs": 5, "messages": None})
    assert (answer.status_code, answer.headers["content-type"]) == (422, "text/plain; charset=utf-8")


@pytest.mark.parametrize("path", ["/tokenize", "/chat_tokenize"])
async def test_before_the_model_is_there_it_is_503(harness, path):
    answer = await harness(opened=False).client.post(path, json={"inputs": "a", **CHAT})
    assert (answer.status_code, answer.json()["error_type"]) == (503, "unavailable")


async def test_a_tokenizer_that_fails_is_told(harness, tokenizer, monkeypatch):
    def fail(*_):
        raise RuntimeError("no such piece")

    one = harness()
    monkeypatch.setattr(one.service.tokenizer, "_spans", fail)
    answer = await one.client.post("/tokenize", json={"inputs": "a"})
    assert answer.status_code == 422
    assert answer.json()["error"] == "Input validation error: tokenizer error no such piece"


# -- chats ---------------------------------------------------------------------------------------------------


@pytest.mark.case(153)
async def test_a_chat_is_its_text_and_the_tokens_of_that(harness, tokenizer):
    answer = await chat_tokenize(harness(), CHAT["messages"])
    assert list(answer.json()) == ["tokenize_response", "templated_text"]
    text = "<user>Hello\n<assistant>"
    assert answer.json()["templated_text"] == text
    tokens = answer.json()["tokenize_response"]
    assert [token["id"] for token in tokens] == tokenizer.encode(text, add_special_tokens=False)
    assert "".join(token["text"] for token in tokens) == text
    assert not [name for name in answer.headers if name.startswith("x-")]


@pytest.mark.case(113)
async def test_an_image_is_a_link_in_the_text(harness):
    content = [
        {"type": "text", "text": "Whats in this image?"},
        {"type": "image_url", "image_url": {"url": "http://h/é.png"}},
    ]
    answer = await chat_tokenize(harness(), [{"role": "user", "content": content}])
    assert "<user>Whats in this image?![](http://h/é.png)\n" in answer.json()["templated_text"]


@pytest.mark.case(114)
async def test_an_assistants_last_message_goes_on(harness):
    messages = [*CHAT["messages"], {"role": "assistant", "content": "the elephant, but"}]
    answer = await chat_tokenize(harness(), messages)
    assert answer.json()["templated_text"] == "<user>Hello\n<assistant>the elephant, but"


async def test_it_counts_as_a_request_and_generates_nothing(harness):
    one = harness()
    await chat_tokenize(one, CHAT["messages"])
    await tokenize(one, "Hello")
    assert "tgi_request_count 1" in one.service.metrics.render().decode()
    assert one.source.requests == []


async def test_what_a_chat_refuses_is_refused_here_too(harness):
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    answer = await chat_tokenize(harness(), CHAT["messages"], tools=tools, tool_choice="g")
    assert (answer.status_code, answer.json()["error_type"]) == (422, "tool_error")
    answer = await chat_tokenize(harness(chat_template=None), CHAT["messages"])
    assert answer.json() == {"error": "Template error: template not found", "error_type": "template_error"}


async def test_no_key_is_asked_for_a_chat(harness):
    one = harness(api_key="Secret")
    assert (await chat_tokenize(one, CHAT["messages"])).status_code == 200
    assert (await one.client.post("/tokenize", json={"inputs": "a"})).status_code == 401
