"""Grammars as clients write them: TGI's rules, its texts, and how it reads a schema."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from jsonschema import Draft202012Validator

from neuron_server.errors import ValidationError
from neuron_server.grammar import MAX_GRAMMAR_CHARS, Grammar
from neuron_server.router.grammar import GrammarReader, _metaschema, read_schema
from neuron_server.router.tgi_schema import GrammarType

NAME = {"properties": {"name": {"type": "string"}}}
CLOSED_NAME = {"type": "object", "additionalProperties": False, "properties": {"name": {"type": "string"}}}


@pytest.fixture
def executor():
    with ThreadPoolExecutor(1) as threads:
        yield threads


@pytest.fixture
def reader(executor) -> GrammarReader:
    return GrammarReader(executor, disabled=False)


async def refusal(reader: GrammarReader, kind: str, value: object) -> str:
    with pytest.raises(ValidationError) as caught:
        await reader.read(GrammarType(type=kind, value=value))
    return str(caught.value)


def schema_of(grammar: Grammar) -> object:
    assert grammar.kind == "json_schema"
    return json.loads(grammar.text)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("json", NAME),
        ("json_object", NAME),
        ("json", json.dumps(NAME)),
        ("json_schema", {"schema": NAME, "name": "n", "strict": True}),
    ],
)
async def test_every_spelling_of_a_schema_is_the_same_grammar(reader, kind, value):
    grammar = await reader.read(GrammarType(type=kind, value=value))
    assert schema_of(grammar) == CLOSED_NAME
    assert " " not in grammar.text


async def test_a_regex_is_passed_on_unread(reader):
    assert await reader.read(GrammarType(type="regex", value="(")) == Grammar("regex", "(")


@pytest.mark.parametrize(
    ("kind", "value"),
    [("regex", "a"), ("json", 5), ("json", NAME), ("json", "{not json"), ("json_schema", {"schema": NAME})],
)
async def test_disabled_grammars_are_refused_before_they_are_looked_at(executor, kind, value):
    reader = GrammarReader(executor, disabled=True)
    assert await refusal(reader, kind, value) == "grammar is not supported"


@pytest.mark.parametrize("value", [5, 1.5, None, True, [], [NAME]])
async def test_a_json_grammar_is_an_object_or_a_string(reader, value):
    assert await refusal(reader, "json", value) == "grammar is not supported"


@pytest.mark.parametrize(
    ("value", "detail"),
    [
        ("{not json", "Expecting property name"),
        ("", "Expecting value"),
        ('{"properties":{},"x":NaN}', "NaN is not JSON"),
        ({"properties": 5}, "5 is not of type 'object' at $.properties"),
        ({"properties": {"a": {"type": "strng"}}}, "'strng' is not valid"),
        ({"properties": {"a": {"minLength": "x"}}}, "at $.properties.a.minLength"),
        ("[1]", "[1] is not of type 'object', 'boolean'"),
        ({"type": "object"}, "Grammar must have a 'properties' field"),
        ({}, "Grammar must have a 'properties' field"),
        ("true", "Grammar must have a 'properties' field"),
    ],
)
async def test_what_is_wrong_with_a_schema_is_said(reader, value, detail):
    text = await refusal(reader, "json", value)
    assert text.startswith("grammar is not valid: ")
    assert detail in text
    assert len(text) < 800


@pytest.mark.parametrize(
    "schema", ['{"properties":{"\\ud800":{}}}', '{"properties":{"a":{"enum":["\\udfff"]}}}']
)
async def test_half_a_surrogate_pair_in_a_schema_given_as_text_is_said(reader, schema):
    """The body's own parser sees only an escaped backslash there, and UTF-8 could not carry it further."""
    assert (
        await refusal(reader, "json", schema) == "grammar is not valid: lone leading surrogate in hex escape"
    )


async def test_the_schema_of_json_schema_follows_the_same_rules(reader):
    assert "'properties' field" in await refusal(reader, "json_schema", {"schema": {"type": "object"}})
    assert "is not of type" in await refusal(reader, "json_schema", {"schema": 5})


async def test_size_and_depth_are_bounded(reader):
    long = {"properties": {f"p{i}": {"type": "string"} for i in range(6000)}}
    assert f"at most {MAX_GRAMMAR_CHARS}" in await refusal(reader, "json", long)
    assert f"at most {MAX_GRAMMAR_CHARS}" in await refusal(reader, "regex", "a" * (MAX_GRAMMAR_CHARS + 1))
    deep: dict[str, object] = {"type": "string"}
    for _ in range(300):
        deep = {"properties": {"a": deep}}
    assert await refusal(reader, "json", deep) == "grammar is not valid: it is nested too deeply"
    assert "nested too deeply" in await refusal(reader, "json", '{"properties":' * 5000 + "}" * 5000)


async def test_a_schema_is_checked_once(reader, monkeypatch):
    read = []
    monkeypatch.setattr(
        "neuron_server.router.grammar.read_schema", lambda text: read.append(text) or read_schema(text)
    )
    for _ in range(3):
        await reader.read(GrammarType(type="json", value=NAME))
    assert len(read) == 1
    for n in range(100):
        await reader.read(GrammarType(type="json", value={"properties": {f"p{n}": {}}}))
    assert len(reader._read) == 64


# -- how TGI reads a schema ----------------------------------------------------------------------------------


def read(schema: object) -> object:
    return schema_of(read_schema(json.dumps(schema)))


def test_the_text_is_an_object():
    assert read({"properties": {}}) == {"type": "object", "properties": {}}


def test_an_object_has_no_other_properties_than_it_names_at_any_depth():
    inner = {"properties": {"x": {"type": "integer"}}}
    closed = {"type": "object", "additionalProperties": False, **inner}
    read_ = read(
        {
            "properties": {
                "a": inner,
                "b": {"type": "array", "items": inner},
                "c": {"anyOf": [inner, inner]},
            },
            "$defs": {"d": inner},
            "$functions": {"f": inner},
        }
    )
    assert read_["properties"]["a"] == closed
    assert read_["properties"]["b"]["items"] == closed
    assert read_["properties"]["c"]["anyOf"] == [closed, closed]
    assert read_["$defs"]["d"] == closed
    assert read_["$functions"]["f"] == closed


def test_what_a_schema_says_itself_stands():
    schema = {"type": "object", "properties": {"a": {}}, "additionalProperties": {"type": "integer"}}
    assert read(schema) == schema


def test_values_that_look_like_schemas_are_values():
    schema = {
        "properties": {"a": {"const": {"properties": {"b": 1}}}, "c": {"enum": [{"properties": {"d": 1}}]}}
    }
    assert read(schema)["properties"] == schema["properties"]


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"a": {"allOf": [NAME, {"properties": {"b": {}}}]}}},
        {"$ref": "#/$defs/x", "properties": {"a": {}}, "$defs": {"x": NAME}},
        {"properties": {"a": {}}, "anyOf": [{"properties": {"b": {}}}, {"required": ["a"]}]},
        {"properties": {"a": {}}, "patternProperties": {"^x": {}}},
    ],
)
def test_schemas_that_share_an_object_are_left_open(schema):
    assert read(schema) == {"type": "object", **schema}


def test_the_compilers_own_settings_are_not_the_clients():
    assert read({**NAME, "x-guidance": {"whitespace_flexible": True}}) == CLOSED_NAME


@pytest.mark.parametrize(
    "schema",
    [
        {"type": ["string", "string"]},
        {"type": ["string", "null"]},
        {"type": [1, True]},
        {"required": ["a", "a"]},
        {"dependencies": {"a": ["b", "b"]}},
        {"$defs": {"a": {"$schema": "http://json-schema.org/draft-07/schema#", "items": [3]}}},
        {"properties": {"a": {"anyOf": []}}},
        {"$id": "x#y"},
    ],
)
def test_the_metaschema_finds_what_the_library_finds(schema):
    expected = next(Draft202012Validator(Draft202012Validator.META_SCHEMA).iter_errors(schema), None)
    found = next(_metaschema().iter_errors(schema), None)
    assert (found and (found.message, found.json_path)) == (
        expected and (expected.message, expected.json_path)
    )


@pytest.mark.parametrize("key", ["type", "dependencies"])
async def test_a_long_list_that_must_be_unique_is_not_compared_item_by_item(reader, key):
    """jsonschema itself takes minutes for these, so it is the time limit of all tests that fails."""
    items = [{"a": n} for n in range(11_000)]
    schema = {"properties": {"a": {key: items if key == "type" else {"b": items}}}}
    text = json.dumps(schema, separators=(",", ":"))
    assert (await refusal(reader, "json", text)).startswith("grammar is not valid: [{'a': 0}, {'a': 1}")
