"""From a chat to the text to continue (conformance cases 112, 113, 132 and 133)."""

from __future__ import annotations

import json

import pytest

from neuron_server.errors import ChatTemplateError, NoChatTemplateError, ToolError, UnavailableError
from neuron_server.router.openai_schema import ChatRequest
from neuron_server.router.prompt import TOOL_PROMPT, prepare_chat
from neuron_server.text.chat import compile_template

HI = {"role": "user", "content": "Hi"}
SCHEMA = {"type": "object", "properties": {"b": {"type": "string"}, "a": {"const": "é"}}}
TOOL = {"type": "function", "function": {"name": "f", "description": "Does f.", "parameters": SCHEMA}}
TOOL_JSON = {
    "type": "function",
    "function": {
        "description": "Does f.",
        "name": "f",
        "arguments": '{"type":"object","properties":{"b":{"type":"string"},"a":{"const":"é"}}}',
    },
}
SHOWS_TOOLS = "{% for tool in tools or [] %}{{ tool.function.arguments }};{% endfor %}"
SHOWS_TOOLS += "{% for m in messages %}{{ m.content }}{% endfor %}"


async def prepare(one, *messages, **fields):
    return await prepare_chat(
        one.service, ChatRequest.model_validate({"messages": list(messages) or [HI], **fields})
    )


async def inputs(one, *messages, **fields) -> str:
    return (await prepare(one, *messages, **fields)).inputs


def compact(value) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


# -- messages ------------------------------------------------------------------------------------------------


async def test_a_chat_is_its_rendered_template_and_its_parameters(harness):
    prepared = await prepare(harness(), max_tokens=5)
    assert (prepared.inputs, prepared.tools) == ("<user>Hi\n<assistant>", None)
    assert prepared.parameters.max_new_tokens == 5


@pytest.mark.case(113)
async def test_the_pieces_of_a_message_are_put_together(harness):
    pieces = [
        {"type": "text", "text": "a"},
        {"type": "image_url", "image_url": {"url": "U", "detail": "low"}},
        {"type": "text", "text": "b"},
    ]
    assert await inputs(harness(), {"role": "user", "content": pieces}) == "<user>a![](U)b\n<assistant>"
    assert await inputs(harness(), {"role": "user", "content": []}) == "<user>\n<assistant>"


@pytest.mark.case(112)
async def test_a_call_is_shown_as_json_with_its_arguments_in_a_string(harness):
    function = {"name": "f", "arguments": {"b": 1.0, "a": "é"}}
    calls = {"role": "assistant", "tool_calls": [{"id": "0", "type": "function", "function": function}]}
    shown = [
        {
            "id": "0",
            "type": "function",
            "function": {"description": None, "name": "f", "arguments": '{"b":1.0,"a":"é"}'},
        }
    ]
    text = await inputs(harness(), HI, calls, {"role": "tool", "tool_call_id": "0", "content": "6.7"})
    assert text == f"<user>Hi\n<assistant>{compact(shown)}\n<tool>6.7\n<assistant>"


async def test_names_and_ids_of_calls_do_not_reach_the_template(harness):
    one = harness(chat_template="{{ messages|tojson }}")
    text = await inputs(one, HI | {"name": "Ann", "tool_call_id": "0", "x": 1})
    assert json.loads(text) == [HI]


async def test_a_long_conversation_is_rendered_beside_the_event_loop(harness, monkeypatch):
    one, offered = harness(), []
    in_thread = one.service.in_thread

    async def recorded(work):
        offered.append(work)
        return await in_thread(work)

    monkeypatch.setattr(one.service, "in_thread", recorded)
    await inputs(one, HI)
    assert not offered
    for messages in (
        [HI] * 100,
        [{"role": "user", "content": "a" * 10_000}],
        [{"role": "user", "content": [{"type": "text", "text": "a" * 10_000}]}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a" * 10_000}}]}],
    ):
        offered.clear()
        assert len(await inputs(one, *messages)) > 500
        assert len(offered) == 1


# -- tools ---------------------------------------------------------------------------------------------------


@pytest.mark.case(132)
async def test_a_template_without_tools_has_them_behind_the_last_message(harness):
    prepared = await prepare(harness(), HI, HI, tools=[TOOL], tool_choice="f", tool_prompt="Call!")
    shown = compact([TOOL_JSON])
    assert prepared.inputs == f"<user>Hi\n<user>Hi\n---\n{shown}\nCall!\n<assistant>"
    assert prepared.parameters.grammar == prepared.tools.grammar


@pytest.mark.case(133)
async def test_a_template_with_tools_shows_them_itself(harness):
    one = harness(chat_template=SHOWS_TOOLS)
    text = await inputs(one, tools=[TOOL], tool_choice="required", tool_prompt="Call!")
    assert text == f"{TOOL_JSON['function']['arguments']};Hi\n---\nCall!"
    assert await inputs(one) == "Hi"


@pytest.mark.parametrize("given", [{}, {"tool_prompt": None}, {"tool_prompt": ""}])
async def test_there_is_a_tool_prompt_of_our_own(harness, given):
    text = await inputs(harness(), tools=[TOOL], tool_choice="f", **given)
    assert text.endswith(f"\n{TOOL_PROMPT}\n<assistant>")


async def test_by_default_the_model_may_choose_no_tool(harness):
    one = harness(chat_template="{% for t in tools %}{{ t.function.name }} {% endfor %}")
    assert await inputs(one, tools=[TOOL]) == "f no_tool "
    assert await inputs(one, tools=[]) == "no_tool "


async def test_tool_choice_none_shows_no_tools(harness):
    prepared = await prepare(harness(), tools=[TOOL], tool_choice="none", tool_prompt="Call!")
    assert (prepared.inputs, prepared.tools, prepared.parameters.grammar) == (
        "<user>Hi\n<assistant>",
        None,
        None,
    )


async def test_a_last_message_that_is_a_call_stays_as_it_is(harness):
    call = {"id": "0", "type": "function", "function": {"name": "f", "arguments": {}}}
    text = await inputs(harness(), HI, {"role": "user", "tool_calls": [call]}, tools=[TOOL])
    assert "---" not in text


# -- refusals ------------------------------------------------------------------------------------------------


async def refused(one, kind, **fields) -> str:
    with pytest.raises(kind) as error:
        await prepare(one, **fields)
    assert type(error.value) is kind
    return str(error.value)


def counted(one) -> str:
    return one.service.metrics.render().decode()


async def test_tools_are_looked_at_before_the_template(harness):
    one = harness(chat_template=None)
    grammar = {"type": "regex", "value": "a"}
    text = await refused(one, ToolError, tools=[], response_format=grammar)
    assert text == "Grammar and tools are mutually exclusive"
    assert await refused(one, ToolError, tools=[TOOL], tool_choice="g") == "Tool with name g not found"
    assert await refused(one, NoChatTemplateError) == "template not found"
    assert "tgi_request_failure" not in counted(one).replace("# ", "")


async def test_a_failed_template_is_counted(harness):
    one = harness(chat_template="{{ raise_exception('No.') }}")
    assert await refused(one, ChatTemplateError) == "No."
    assert 'tgi_request_failure{err="template"} 1' in counted(one)


async def test_before_the_model_is_there_nothing_is_rendered(harness):
    await refused(harness(opened=False), UnavailableError)


async def test_no_messages_are_what_the_template_makes_of_them(harness):
    one = harness()
    request = ChatRequest.model_validate({"messages": [], "tools": [TOOL]})
    assert (await prepare_chat(one.service, request)).inputs == "<assistant>"
    one.service.chat_template = compile_template("{{ messages[0].content }}")
    with pytest.raises(ChatTemplateError, match="has no element 0"):
        await prepare_chat(one.service, request)
