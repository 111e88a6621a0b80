"""Cases of chat that its other tests show in part: whole requests, and prompts as templates render them."""

from __future__ import annotations

import json

import pytest
from chat_requests import PATH, WEATHER, ask, chat, events, writes
from conformance import OPENAI_FORMS

from neuron_server.router.prompt import TOOL_PROMPT

ALTERNATES = (
    "{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{% endif %}[{{ m.content }}]{% endfor %}"
)
WITH_TOOLS = (
    "{{ tools | length if tools else 0 }}:{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
)
USER = {"role": "user", "content": "Hi"}
TOOL_JSON = (
    '[{"type":"function","function":{"description":"Weather at a place","name":"get_weather","arguments":"'
    + json.dumps(WEATHER["function"]["parameters"], separators=(",", ":")).replace('"', '\\"')
    + '"}}]'
)


async def rendered(one, **body) -> str:
    """The prompt that a chat becomes."""
    answer = await one.client.post("/chat_tokenize", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["templated_text"]


@pytest.mark.case(98)
async def test_usage_is_a_sum_and_nothing_calls(harness):
    one = harness()
    answer = (await ask(one, model="tgi", max_tokens=5)).json()
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "hhhhh"},
            "logprobs": None,
            "finish_reason": "length",
        }
    ]
    prompt = len(one.service.tokenizer.encode("<user>Hi\n<assistant>"))
    assert answer["usage"] == {"prompt_tokens": prompt, "completion_tokens": 5, "total_tokens": prompt + 5}


@pytest.mark.case(99)
async def test_without_a_model_the_answer_names_the_served_one(harness):
    assert (await ask(harness(), max_tokens=1)).json()["model"] == "M"


@pytest.mark.case(105)
async def test_the_other_name_of_max_tokens_limits_as_well(harness):
    for name in ("max_tokens", "max_completion_tokens"):
        usage = (await ask(harness(), **{name: 5})).json()["usage"]
        assert usage["completion_tokens"] == 5


@pytest.mark.parametrize(
    "stop",
    [
        pytest.param(["x"], marks=pytest.mark.case(106)),
        pytest.param("x", marks=pytest.mark.case(106, deviation=OPENAI_FORMS)),
    ],
)
async def test_one_stop_string_may_be_bare(harness, tokenizer, stop):
    answer = await ask(writes(harness(), tokenizer, "axb"), stop=stop)
    assert answer.status_code == 200
    (choice,) = answer.json()["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("ax", "stop_sequence")


@pytest.mark.case(112)
async def test_a_call_and_its_result_are_part_of_the_conversation(harness):
    call = {"id": "0", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "w?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "0", "content": "6.7"},
    ]
    one = harness()
    answer = await one.client.post(PATH, json={"messages": messages, "max_tokens": 1})
    assert answer.status_code == 200
    told = '[{"id":"0","type":"function","function":{"description":null,"name":"f","arguments":"\\"{}\\""}}]'
    expected = f"<user>w?\n<assistant>{told}\n<tool>6.7\n<assistant>"
    assert await rendered(one, messages=messages) == expected


@pytest.mark.case(113)
async def test_an_image_becomes_a_link(harness):
    content = [
        {"type": "text", "text": "Whats in this image?"},
        {"type": "image_url", "image_url": {"url": "U"}},
    ]
    text = await rendered(harness(), messages=[{"role": "user", "content": content}])
    assert text == "<user>Whats in this image?![](U)\n<assistant>"


@pytest.mark.case(114)
async def test_what_the_assistant_has_begun_is_continued(harness):
    messages = [USER, {"role": "assistant", "content": "the elephant, but"}]
    text = await rendered(harness(), messages=messages)
    assert text == "<user>Hi\n<assistant>the elephant, but"


@pytest.mark.case(115)
@pytest.mark.parametrize("streamed", [False, True])
async def test_without_a_template_there_is_no_chat(harness, streamed):
    answer = await ask(harness(chat_template=None), stream=streamed)
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/json")
    assert answer.json() == {"error": "Template error: template not found", "error_type": "template_error"}


@pytest.mark.case(116)
async def test_a_template_refuses_an_order_of_roles(harness):
    one = harness(chat_template=ALTERNATES)
    answer = await one.client.post(PATH, json={"messages": [USER, USER]})
    text = "Template error: Conversation roles must alternate user/assistant/user/assistant/..."
    assert (answer.status_code, answer.json()) == (422, {"error": text, "error_type": "template_error"})
    messages = [USER, {"role": "assistant", "content": "a"}, USER]
    assert await rendered(one, messages=messages) == "[Hi][a][Hi]"


@pytest.mark.case(117)
async def test_no_tools_at_all_are_tools_beside_a_response_format(harness):
    body = chat(tools=[], response_format={"type": "json_object", "value": {"properties": {"a": {}}}})
    answer = await harness().client.post(PATH, json=body)
    text = "Tool error: Grammar and tools are mutually exclusive"
    assert (answer.status_code, answer.json()) == (422, {"error": text, "error_type": "tool_error"})


@pytest.mark.case(121)
async def test_a_named_function_is_called_in_either_form_of_the_choice(harness, tokenizer):
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    for choice in ("f", {"type": "function", "function": {"name": "f"}}):
        one = writes(harness(), tokenizer, '{"function": {"_name": "f"}}')
        (told,) = (await ask(one, tools=[tool], tool_choice=choice)).json()["choices"]
        function = {"description": None, "name": "f", "arguments": "{}"}
        calls = [{"id": "0", "type": "function", "function": function}]
        assert told["message"] == {"role": "assistant", "tool_calls": calls}


@pytest.mark.case(123, deviation=OPENAI_FORMS)
@pytest.mark.parametrize(
    ("given", "properties"),
    [
        ({"type": "json_object"}, {}),
        ({"type": "text"}, None),
        (
            {"type": "json_schema", "json_schema": {"name": "n", "schema": {"properties": {"a": {}}}}},
            {"a": {}},
        ),
    ],
)
async def test_openais_forms_of_a_response_format_constrain_the_answer(harness, given, properties):
    one = harness()
    assert (await ask(one, response_format=given, max_tokens=1)).status_code == 200
    (request,) = one.source.requests
    found = None if request.grammar is None else json.loads(request.grammar.text)["properties"]
    assert found == properties


@pytest.mark.case(124)
async def test_three_tokens_are_three_chunks_and_done(harness):
    answer = await ask(harness(), stream=True, max_tokens=3)
    found = events(answer)
    assert answer.content.endswith(b"\n\ndata: [DONE]\n\n")
    assert {event["object"] for event in found} == {"chat.completion.chunk"}
    assert [event["usage"] for event in found] == [None] * 3
    (choices,) = zip(*(event["choices"] for event in found), strict=True)
    assert [choice["delta"] for choice in choices] == [{"role": "assistant", "content": "h"}] * 3
    assert [choice["finish_reason"] for choice in choices] == [None, None, "length"]


@pytest.mark.parametrize("prompt", [None, "", "Use one."])
@pytest.mark.parametrize(
    ("template", "begin", "shown", "end"),
    [
        pytest.param(None, "<user>", TOOL_JSON + "\n", "\n<assistant>", marks=pytest.mark.case(132)),
        pytest.param(WITH_TOOLS, "1:<user>", "", "", marks=pytest.mark.case(133)),
    ],
)
async def test_tools_stand_behind_the_last_message(harness, prompt, template, begin, shown, end):
    one = harness() if template is None else harness(chat_template=template)
    body = chat(tools=[WEATHER], tool_choice="required", tool_prompt=prompt)
    text = await rendered(one, **body)
    assert text == f"{begin}Hi\n---\n{shown}{prompt or TOOL_PROMPT}{end}"
