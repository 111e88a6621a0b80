"""Which tools are offered, their grammar, and the answers read back (conformance cases 117 to 122)."""

from __future__ import annotations

import json
import uuid

import jsonschema
import pytest
from llguidance import LLMatcher, LLTokenizer

from neuron_server.errors import ToolError
from neuron_server.router.openai_schema import ChatRequest, Message
from neuron_server.router.tools import NO_TOOL, FunctionCall, choose, next_call_id, parse_call

MESSAGES = [{"role": "user", "content": "Hi"}]


def tool(name="f", parameters=None, **function):
    parameters = (
        {"type": "object", "properties": {"a": {"type": "string"}}} if parameters is None else parameters
    )
    return {"type": "function", "function": {"name": name, "parameters": parameters, **function}}


def plan(tools, tool_choice="auto", **body):
    return choose(
        ChatRequest.model_validate({"messages": MESSAGES, "tools": tools, "tool_choice": tool_choice, **body})
    )


def schema(*tools, tool_choice="required"):
    return plan(list(tools), tool_choice).grammar.value


def writable(schema, text) -> bool:
    """Whether a model held to ``schema`` by llguidance may write ``text`` and end there."""
    matcher = LLMatcher(TOKENS, LLMatcher.grammar_from_json_schema(json.dumps(schema)))
    assert not matcher.is_error(), matcher.get_error()
    ids = TOKENS.tokenize_str(text)
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


TOKENS = LLTokenizer("byte")


def call(name, **arguments) -> str:
    return json.dumps({"function": {"_name": name, **arguments}}, ensure_ascii=False)


# -- the choice ----------------------------------------------------------------------------------------------


def names(found) -> list[str] | None:
    return found and [one.function.name for one in found.tools]


@pytest.mark.parametrize(
    ("choice", "offered"),
    [
        (None, ["f", "g", NO_TOOL]),
        ("auto", ["f", "g", NO_TOOL]),
        ("required", ["f", "g"]),
        ("none", None),
        ("g", ["g"]),
        ({"type": "function", "function": {"name": "g"}}, ["g"]),
    ],
)
def test_the_choice_decides_what_is_offered(choice, offered):
    found = plan([tool("f"), tool("g")], choice)
    assert names(found) == offered
    assert found is None or found.optional == (NO_TOOL in offered)
    if found:
        assert list(found.grammar.value["$functions"]) == offered


def test_without_tools_there_is_no_plan_whatever_is_chosen():
    for choice in (None, "auto", "none", "required", "f"):
        assert plan(None, choice) is None


def test_an_empty_list_offers_no_tool_and_nothing_when_one_is_required():
    assert names(plan([])) == [NO_TOOL]
    assert plan([], "required") is None
    assert plan([], "none") is None


@pytest.mark.parametrize("choice", ["g", {"type": "function", "function": {"name": "g"}}, "", "AUTO"])
def test_a_tool_that_is_not_there_is_refused_by_name(choice):
    name = choice if isinstance(choice, str) else "g"
    with pytest.raises(ToolError, match=f"^Tool with name {name} not found$"):
        plan([tool("f")], choice)


def test_tools_and_a_response_format_exclude_each_other_even_when_nothing_would_come_of_the_tools():
    wanted = {"type": "json_object", "value": {"properties": {}}}
    for tools, choice in (([], "auto"), ([], "none"), ([tool()], "none"), ([tool()], "missing")):
        with pytest.raises(ToolError, match=r"^Grammar and tools are mutually exclusive$"):
            plan(tools, choice, response_format=wanted)
    assert plan(None, response_format=wanted) is None
    assert plan([tool()], response_format={"type": "text"}) is not None


def test_a_tool_of_the_users_called_no_tool_gives_way_only_when_no_tool_is_offered():
    assert names(plan([tool(NO_TOOL), tool("f")])) == ["f", NO_TOOL]
    required = plan([tool(NO_TOOL)], "required")
    assert names(required) == [NO_TOOL]
    assert not required.optional


# -- the grammar ---------------------------------------------------------------------------------------------


def test_the_schema_has_tgis_shape():
    parameters = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    assert schema(tool("f", parameters, description="does f"), tool("g", {})) == {
        "$functions": {
            "f": {
                "description": "does f",
                "type": "object",
                "properties": {"_name": {"type": "string", "const": "f"}, "a": {"type": "integer"}},
                "required": ["_name", "a"],
                "additionalProperties": False,
            },
            "g": {
                "description": "",
                "type": "object",
                "properties": {"_name": {"type": "string", "const": "g"}},
                "required": ["_name"],
                "additionalProperties": False,
            },
        },
        "type": "object",
        "properties": {"function": {"anyOf": [{"$ref": "#/$functions/f"}, {"$ref": "#/$functions/g"}]}},
        "required": ["function"],
        "additionalProperties": False,
    }


def test_more_arguments_are_allowed_only_by_the_word_true():
    for given, allowed in (("true", True), (True, False), ("false", False), ({}, False)):
        function = schema(tool("f", {"additionalProperties": given}))["$functions"]["f"]
        assert function["additionalProperties"] is allowed
    assert "additionalProperties" not in schema(tool("f", "no object"))["$functions"]["f"]


def test_only_calls_can_be_written():
    wanted = schema(tool("f"), tool("g", {"properties": {"n": {"type": "integer"}}, "required": ["n"]}))
    assert writable(wanted, call("f"))
    assert writable(wanted, call("f", a="x"))
    assert writable(wanted, call("g", n=5))
    for text in (
        "5",
        "{}",
        call("h"),
        call("g"),
        call("g", n="x"),
        call("f", b=1),
        call("f") + " ",
        '{"x":1}',
    ):
        assert not writable(wanted, text), text
    assert not writable(wanted, '{"function":{"a":"x","_name":"f"}}')  # the name stands first


@pytest.mark.parametrize(
    "name", ["a b", 'q"x', "s/l", "t~1", "p%20", "#/x", "\u00fc\u4e2d", "", "back\\slash", "_name"]
)
def test_any_name_can_be_called_and_is_read_back(name):
    wanted = schema(tool(name))
    text = call(name, a="x")
    jsonschema.Draft202012Validator(wanted).validate(json.loads(text))
    assert writable(wanted, text)
    assert parse_call(text) == FunctionCall(name, '{"a":"x"}')


def test_a_tools_own_definitions_are_kept_and_found():
    point = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
    refers = {
        "type": "object",
        "properties": {"at": {"$ref": "#/$defs/P"}},
        "required": ["at"],
        "$defs": {"P": point},
    }
    shares = {"properties": {"p": {"type": "boolean"}, "q": {"$ref": "#/properties/p"}}, "required": ["q"]}
    wanted = schema(tool("f/~ g", refers), tool("h", shares))
    assert writable(wanted, call("f/~ g", at={"x": 1}))
    assert not writable(wanted, call("f/~ g", at={"x": "1"}))
    assert writable(wanted, call("h", q=True))
    assert not writable(wanted, call("h", q=1))


def test_an_argument_called_name_does_not_replace_the_functions_name():
    wanted = schema(tool("f", {"properties": {"_name": {"type": "integer"}}, "required": ["_name", "_name"]}))
    assert wanted["$functions"]["f"]["required"] == ["_name"]
    assert writable(wanted, call("f"))


@pytest.mark.parametrize("parameters", [None, 5, "x", [], {"properties": []}, {"required": [5, {}, "zz"]}])
def test_parameters_of_the_wrong_kind_are_as_none(parameters):
    body = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    assert writable(schema(body), call("f"))


def test_of_two_tools_with_one_name_the_last_counts():
    wanted = schema(tool("f"), tool("f", {"properties": {"b": {"type": "integer"}}}))
    assert not writable(wanted, call("f", a="x"))
    assert writable(wanted, call("f", b=1))


def test_hundreds_of_tools_are_one_grammar():
    wanted = schema(*(tool(f"f{n}") for n in range(300)))
    assert writable(wanted, call("f299", a="x"))


# -- the answer ----------------------------------------------------------------------------------------------


def test_arguments_come_without_white_space_and_otherwise_as_they_were_written():
    text = '{ "function" : {"_name": "f",\n "b": [1, 1e5,  12345678901234567890123],\t"a": '
    text += '"x  \\" y\\u00e9\u00e9"}}'
    wanted = '{"b":[1,1e5,12345678901234567890123],"a":"x  \\" y\\u00e9\u00e9"}'
    assert parse_call(text) == FunctionCall("f", wanted)


def test_a_call_without_arguments_has_an_empty_object():
    assert parse_call('{"function": {"_name": "f"}}') == FunctionCall("f", "{}")
    assert parse_call('{"function": {"_name": "f" , } }'.replace(", ", "")) == FunctionCall("f", "{}")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Hello",
        "{}",
        "null",
        '{"function": {"_name": "f", "a": "x',
        '{"function": {"_name": "f", "a": "x"',
        '{"function": {"_name": "f"',
        '{"function": {"_name": "f"}',
        '{"function": {"_na',
        '{"function": {"_name": "f", "a": nope}}',
        '{"function": {"_name": "f", "a": "\\ud800"}}',
        '{"function": {"_name": "\\ud800"}}',
        '{"function": {"_name": 5}}',
        '{"function": {"_name": "f", "a": ' + "[" * 5000 + "}}",
    ],
)
def test_an_answer_that_is_no_whole_call_is_refused_and_quoted(text):
    with pytest.raises(ToolError, match=r"^Failed to parse generated text: ") as caught:
        parse_call(text)
    assert str(caught.value).endswith(f": {json.dumps(text[:500], ensure_ascii=False)}")


# -- ids -----------------------------------------------------------------------------------------------------


def messages(*ids, content=None) -> list[Message]:
    function = {"name": "f", "arguments": "{}"}
    calls = [{"id": one, "type": "function", "function": function} for one in ids]
    body = {"role": "assistant", "tool_calls": calls, "content": content}
    return [Message.model_validate(one) for one in (*MESSAGES, body, *MESSAGES)]


def test_ids_of_calls_count_on():
    assert next_call_id([]) == "0"
    assert next_call_id(messages()) == "0"
    assert next_call_id(messages("0")) == "1"
    assert next_call_id([*messages("3", "11"), *messages("5")]) == "12"


def test_beside_ids_that_are_no_integers_a_call_gets_a_uuid():
    for ids in (("call_abc",), ("0", "x"), ("",), ("-1",), ("1.0",), ("\u0663",), ("9" * 400,)):
        assert uuid.UUID(next_call_id(messages(*ids))).version == 4


def test_calls_that_content_has_replaced_do_not_count():
    assert next_call_id(messages("7", content="said")) == "0"
