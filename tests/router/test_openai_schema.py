"""What the bodies of OpenAI's routes may hold (conformance cases 105 to 111, 119, 123 and 138)."""

from __future__ import annotations

import json

import pytest
from conformance import OPENAI_FORMS

from neuron_server.router.json_body import BodyRefusedError, parse
from neuron_server.router.openai_schema import ChatRequest, CompletionRequest, ToolChoice
from neuron_server.router.serde import deserialize

HI = {"role": "user", "content": "Hi"}
FUNCTION = {"name": "f", "parameters": {"type": "object"}}
TOOL = {"type": "function", "function": FUNCTION}
CALL = {"id": "0", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def chat(**fields) -> ChatRequest:
    return deserialize(ChatRequest, parse(json.dumps({"messages": [HI], **fields}).encode()))


def completion(**fields) -> CompletionRequest:
    return deserialize(CompletionRequest, parse(json.dumps({"prompt": "a", **fields}).encode()))


def refused(make, **fields) -> str:
    with pytest.raises(BodyRefusedError) as error:
        make(**fields)
    assert error.value.status == 422
    return str(error.value)


# -- nulls and types -----------------------------------------------------------------------------------------

NULLABLE = [
    *(
        "model",
        "frequency_penalty",
        "logit_bias",
        "logprobs",
        "top_logprobs",
        "max_tokens",
        "n",
        "seed",
        "stop",
    ),
    *("presence_penalty", "response_format", "temperature", "top_p", "tools", "tool_prompt", "tool_choice"),
]


@pytest.mark.parametrize("field", NULLABLE)
def test_null_is_as_good_as_nothing_in_a_chat(field):
    assert chat(**{field: None}) == chat()


@pytest.mark.parametrize("field", ["model", "max_tokens", "temperature", "top_p", "seed", "suffix", "stop"])
def test_null_is_as_good_as_nothing_in_a_completion(field):
    assert completion(**{field: None}) == completion()


@pytest.mark.case(108)
@pytest.mark.parametrize("field", ["messages", "stream", "stream_options"])
def test_some_fields_are_never_null(field):
    assert f"{field}: invalid type: null" in refused(chat, **{field: None})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", -1),
        ("max_tokens", 2**32),
        ("max_tokens", 5.0),
        ("seed", -1),
        ("seed", "1"),
        ("top_logprobs", True),
        ("n", -1),
        ("temperature", "0.5"),
        ("temperature", True),
        ("stream", 1),
        ("logprobs", 0),
        ("tools", {}),
        ("tool_choice", 5),
        ("tool_choice", []),
        ("tool_choice", {"type": "function"}),
        ("tool_choice", {"type": "other", "function": {"name": "f"}}),
        ("model", 1),
        ("messages", "Hi"),
        ("messages", [None]),
    ],
)
def test_a_wrong_type_is_refused(field, value):
    assert f"{field}" in refused(chat, **{field: value})


def test_an_integer_is_a_number_and_unknown_keys_are_ignored():
    body = chat(temperature=1, user="me", top_k=5, repetition_penalty="x", store=None)
    assert body.temperature == 1.0


@pytest.mark.case(107)
def test_logit_bias_is_a_list_and_n_any_count():
    assert "logit_bias: invalid type: map, expected a sequence" in refused(chat, logit_bias={"1": 2})
    assert chat(logit_bias=[0.5, 1], n=3).n == 3


@pytest.mark.case(105)
def test_max_tokens_has_a_second_name_but_not_both():
    assert chat(max_completion_tokens=5).max_tokens == 5
    assert "duplicate field `max_tokens`" in refused(chat, max_completion_tokens=5, max_tokens=5)


@pytest.mark.case(106, deviation=OPENAI_FORMS)
@pytest.mark.parametrize("make", [chat, completion])
def test_stop_is_one_string_or_several(make):
    assert make(stop="x").stop == ["x"]
    assert make(stop=["x", "y"]).stop == ["x", "y"]
    assert make(stop=[]).stop == []
    assert "stop: invalid type: integer `5`" in refused(make, stop=5)
    assert "stop[1]: invalid type: null" in refused(make, stop=["x", None])


# -- messages ------------------------------------------------------------------------------------------------


def message(**fields):
    return chat(messages=[{"role": "user", **fields}]).messages[0]


@pytest.mark.case(111)
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"content": None},
        {"content": None, "tool_calls": None},
        {"content": 5},
        {"content": {"type": "text", "text": "a"}},
        {"content": [{"type": "text"}]},
        {"content": [{"type": "audio", "text": "a"}]},
        {"content": [{"type": "image_url", "image_url": "u"}]},
        {"content": ["a"]},
        {"tool_calls": [{"id": "0"}]},
        {"tool_calls": [CALL | {"function": {"name": "f"}}]},
    ],
)
def test_a_message_needs_content_or_calls(fields):
    text = "messages[0]: data did not match any variant of untagged enum MessageBody"
    assert text in refused(message, **fields)


def test_content_wins_over_calls_and_calls_stand_in_for_content_that_does_not_fit():
    assert message(content="a", tool_calls="nonsense").content == "a"
    fallback = message(content=5, tool_calls=[CALL])
    assert (fallback.content, fallback.tool_calls[0].function.arguments) == (None, "{}")
    assert message(content="", tool_calls=[CALL]).content == ""
    assert message(content=[], tool_calls=[CALL]).content == []


def test_a_message_has_any_role_and_a_name_that_is_a_string():
    assert message(content="a", role="oracle", name="Ann", tool_call_id=7).role == "oracle"
    assert message(content="a", name=None).name is None
    assert "messages[0].name: invalid type: integer `5`" in refused(message, content="a", name=5)


# -- tools ---------------------------------------------------------------------------------------------------


@pytest.mark.case(119)
@pytest.mark.parametrize("alias", ["parameters", "arguments"])
def test_a_tool_needs_parameters_under_either_name(alias):
    (tool,) = chat(tools=[{"type": "function", "function": {"name": "f", alias: None}}]).tools
    assert (tool.function.name, tool.function.arguments) == ("f", None)
    missing = refused(chat, tools=[{"type": "function", "function": {"name": "f"}}])
    assert "tools[0].function: missing field `arguments`" in missing
    both = {"name": "f", "parameters": 1, "arguments": 1}
    assert "duplicate field `arguments`" in refused(chat, tools=[{"type": "function", "function": both}])


@pytest.mark.parametrize(
    ("value", "choice"),
    [
        (None, ToolChoice("auto")),
        ("auto", ToolChoice("auto")),
        ("none", ToolChoice("none")),
        ("required", ToolChoice("required")),
        ("Auto", ToolChoice("function", "Auto")),
        ({"type": "function", "function": {"name": "none"}}, ToolChoice("function", "none")),
    ],
)
def test_a_tool_is_chosen_by_a_word_or_by_its_name(value, choice):
    assert chat(tools=[TOOL], tool_choice=value).tool_choice == choice


# -- grammars ------------------------------------------------------------------------------------------------


@pytest.mark.case(123, deviation=OPENAI_FORMS)
def test_a_response_format_may_be_spelled_as_openai_spells_it():
    schema = {"schema": {"properties": {}}, "name": "n", "strict": True}
    assert chat(response_format={"type": "text"}).response_format is None
    any_object = chat(response_format={"type": "json_object"}).response_format
    assert (any_object.type, any_object.value) == ("json_object", {"type": "object", "properties": {}})
    openai = chat(response_format={"type": "json_schema", "json_schema": schema})
    assert openai == chat(response_format={"type": "json_schema", "value": schema})
    assert "missing field `schema`" in refused(
        chat, response_format={"type": "json_schema", "json_schema": {"name": "n"}}
    )


@pytest.mark.parametrize("kind", ["json", "json_object"])
@pytest.mark.parametrize("value", [5, None, "{", {"properties": {}}])
def test_a_json_grammar_may_have_any_value_here(kind, value):
    assert chat(response_format={"type": kind, "value": value}).response_format.value == value


@pytest.mark.parametrize(
    "value",
    [
        5,
        "json",
        {},
        {"type": "json"},
        {"type": "regex"},
        {"type": "regex", "value": 5},
        {"type": "xml", "value": ""},
        {"type": "json_schema"},
        {"type": "json_schema", "value": "{}"},
        {"type": "json_schema", "value": {"name": "n"}},
        {"type": "json_schema", "value": {"schema": {}, "name": 5}},
    ],
)
def test_a_grammar_of_another_form_is_refused(value):
    assert "response_format" in refused(chat, response_format=value)


# -- prompts -------------------------------------------------------------------------------------------------


@pytest.mark.case(138)
def test_a_prompt_is_one_text_or_several_but_not_none():
    assert completion(prompt="a").prompt == ["a"]
    assert completion(prompt=["a", ""]).prompt == ["a", ""]
    assert "Empty array detected" in refused(completion, prompt=[])
    for ids in ([1, 2], [[1]], None, 5, {}):
        assert "prompt: data did not match any variant of untagged enum Prompt" in refused(
            completion, prompt=ids
        )
