"""Any JSON against any schema: an object of the schema, or a refusal in serde's words."""

from __future__ import annotations

import json
import random
import time
from typing import Annotated

import pytest

from neuron_server.router.json_body import SCHEMA, BodyRefusedError, parse
from neuron_server.router.openai_schema import ChatRequest, CompletionRequest
from neuron_server.router.platforms import VertexRequest
from neuron_server.router.serde import FailFast, Schema, Untagged, deserialize, deserialize_untagged
from neuron_server.router.tgi_schema import CompatGenerateRequest, GenerateRequest

HI = '{"role":"user","content":"Hi"}'


def refusal(model, body) -> str:
    """What follows the prefix of a 422."""
    text = body if isinstance(body, str) else json.dumps(body, separators=(",", ":"))
    with pytest.raises(BodyRefusedError) as error:
        deserialize(model, parse(text.encode()))
    assert error.value.status == 422
    assert str(error.value).startswith(SCHEMA)
    return str(error.value).removeprefix(SCHEMA)


@pytest.mark.parametrize(
    ("model", "body", "text"),
    [
        (
            ChatRequest,
            f'{{"messages":[{HI},{{"content":"a"}}]}}',
            "messages[1]: missing field `role` at line 1 column 59",
        ),
        (
            ChatRequest,
            f'{{"messages":[{HI},{{"role":5,"content":"a"}}]}}',
            "messages[1].role: invalid type: integer `5`, expected a string at line 1 column 53",
        ),
        (
            ChatRequest,
            f'{{"messages":[{HI},{{"role":"user"}}]}}',
            "messages[1]: data did not match any variant of untagged enum MessageBody at line 1 column 59",
        ),
        (
            ChatRequest,
            f'{{"messages":[{HI}],"tool_choice":{{"type":"function"}}}}',
            "tool_choice: data did not match any variant of untagged enum ToolChoice at line 1 column 78",
        ),
        (
            CompletionRequest,
            '{"prompt":[1,2]}',
            "prompt: data did not match any variant of untagged enum Prompt at line 1 column 15",
        ),
        (
            CompletionRequest,
            '{"prompt":[]}',
            "prompt: Empty array detected. Do not use an empty array for the prompt. at line 1 column 12",
        ),
        (
            CompletionRequest,
            '{"prompt":"a","stop":["a",1]}',
            "stop[1]: invalid type: integer `1`, expected a string at line 1 column 27",
        ),
        (
            ChatRequest,
            f'{{"messages":[{HI}],"response_format":{{"type":"xml","value":1}}}}',
            "response_format.type: unknown variant `xml`, expected one of `json`, `json_object`, `regex`, "
            "`json_schema` at line 1 column 76",
        ),
        (
            GenerateRequest,
            '{"inputs":"a","parameters":{"grammar":{"type":"json_schema","value":{"name":"n"}}}}',
            "parameters.grammar.value: missing field `schema` at line 1 column 80",
        ),
        (
            GenerateRequest,
            '{"inputs":"a","parameters":{"grammar":{"type":"regex","value":{}}}}',
            "parameters.grammar.value: invalid type: map, expected a string at line 1 column 64",
        ),
    ],
)
def test_a_refusal_has_the_path_the_reason_and_the_place(model, body, text):
    assert refusal(model, body) == text


def test_the_first_thing_that_is_wrong_is_told():
    body = '{"stop":1,"messages":[{}],"seed":-1}'
    assert refusal(ChatRequest, body).startswith("stop: invalid type")
    assert refusal(ChatRequest, body.replace('"stop":1,', "")).startswith("messages[0]: missing field `role`")


@pytest.mark.parametrize(
    ("model", "body", "text"),
    [
        (
            ChatRequest,
            f'{{"messages":[{HI}],"seed":1,"seed":1}}',
            "duplicate field `seed` at line 1 column 62",
        ),
        (
            ChatRequest,
            f'{{"messages":[{HI},{{"role":"a",\n"role":"b","content":""}}]}}',
            "messages[1]: duplicate field `role` at line 2 column 10",
        ),
        (
            ChatRequest,
            '{"messages":[],"tools":[{"type":"function","function":{"name":"a","name":"b","arguments":1}}]}',
            "tools[0].function: duplicate field `name` at line 1 column 76",
        ),
        (
            ChatRequest,
            '{"messages":[],"tools":[{"type":"function","function":{"name":"a","parameters":1,"arguments":1}}]}',
            "tools[0].function: duplicate field `arguments` at line 1 column 94",
        ),
        (
            ChatRequest,
            '{"messages":[],"max_completion_tokens":null,"max_tokens":null}',
            "duplicate field `max_tokens` at line 1 column 61",
        ),
        (
            ChatRequest,
            '{"messages":[],"max_completion_tokens":1,"max_completion_tokens":2}',
            "duplicate field `max_tokens` at line 1 column 66",
        ),
    ],
)
def test_a_field_given_twice_is_refused_under_any_of_its_names(model, body, text):
    assert refusal(model, body) == text


def test_an_unknown_key_may_stand_twice_anywhere():
    body = '{"x":1,"x":2,"messages":[{"y":1,"y":2,"role":"user","content":"a"}]}'
    assert deserialize(ChatRequest, parse(body.encode())).messages[0].content == "a"


def test_what_a_client_declares_is_kept_as_it_is_repeated_keys_included():
    function = '{"name":"f","parameters":{"b":1,"a":2,"b":3}}'
    body = '{"messages":[],"tools":[{"type":"function","function":' + function + "}]}"
    (tool,) = deserialize(ChatRequest, parse(body.encode())).tools
    assert list(tool.function.arguments.items()) == [("b", 3), ("a", 2)]


def test_an_enum_without_a_tag_takes_the_first_variant_that_fits():
    class Loose(Schema):
        a: int

    class Tight(Schema):
        a: int
        b: int

    class Body(Schema):
        items: Annotated[list[Annotated[Loose | Tight, Untagged("Either")]], FailFast()]

    good, bad = parse(b'{"items":[{"a":1,"b":2}]}'), parse(b'{"items":[{"a":1},{"b":2}, 3]}')
    assert isinstance(deserialize(Body, good).items[0], Loose)
    with pytest.raises(
        BodyRefusedError, match=r"items\[1\]: data did not match any variant of untagged enum Either"
    ):
        deserialize(Body, bad)


def test_one_body_of_several_shapes_is_the_first_that_fits():
    models = (GenerateRequest, ChatRequest, CompletionRequest)

    def fit(body):
        return deserialize_untagged("SagemakerRequest", models, parse(body))

    assert isinstance(fit(b'{"inputs":"a","messages":[]}'), GenerateRequest)
    assert isinstance(fit(b'{"inputs":1,"messages":[]}'), ChatRequest)
    assert isinstance(fit(b'{"prompt":"a"}'), CompletionRequest)
    for body in (b' {"foo":1}', b' [{"a":2}]'):
        with pytest.raises(BodyRefusedError) as error:
            fit(body)
        text = "data did not match any variant of untagged enum SagemakerRequest at line 1 column"
        assert str(error.value) == f"{SCHEMA}{text} {len(body)}"


def test_a_refusal_does_not_repeat_megabytes():
    assert len(refusal(GenerateRequest, {"inputs": "a", "parameters": {"seed": "x" * 1_000_000}})) < 1000
    assert (
        len(refusal(ChatRequest, {"messages": [], "response_format": {"type": "x" * 10_000, "value": 1}}))
        < 1000
    )


# -- any JSON ------------------------------------------------------------------------------------------------

MODELS = (GenerateRequest, CompatGenerateRequest, ChatRequest, CompletionRequest, VertexRequest)
CALL = {"id": "0", "type": "function", "function": {"name": "f", "arguments": {}}}
CHUNKS = [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "u"}}]
GOOD = [
    {
        "inputs": "a",
        "parameters": {
            "temperature": 0.5,
            "stop": ["a"],
            "grammar": {"type": "json", "value": {}},
            "seed": 1,
        },
    },
    {
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "user", "content": CHUNKS},
            {"role": "assistant", "tool_calls": [CALL]},
        ],
        "max_completion_tokens": 4,
        "tools": [
            {"type": "function", "function": {"name": "f", "parameters": {"a": 1}, "description": None}}
        ],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "response_format": {"type": "json_schema", "value": {"schema": {}, "name": "x"}},
        "stream_options": {"include_usage": True},
        "logit_bias": [1.0],
        "stop": "a",
    },
    {"prompt": ["a", "b"], "stop": ["x"], "max_tokens": 1, "suffix": None},
    {"instances": [{"inputs": "a", "parameters": None}, {"messages": []}]},
]
ATOMS = [
    None,
    True,
    0,
    -1,
    2**64,
    2**63,
    -(2**63) - 1,
    1.5,
    -0.0,
    1e300,
    "",
    "auto",
    "json",
    "é😀\u2028",
    [],
    {},
]
ATOMS += [[[]], [{}], {"type": "text"}, {"": {}}]
KEYS = [
    "type",
    "role",
    "content",
    "value",
    "schema",
    "arguments",
    "parameters",
    "max_tokens",
    "tool_calls",
    "x",
    "",
]


def mutated(rng: random.Random, value, rate: float):
    """``value`` with some of its parts replaced, left out, renamed or repeated."""
    if rng.random() < rate:
        return rng.choice(ATOMS) if rng.random() < 0.7 else rng.choice(GOOD)
    if isinstance(value, list):
        return [mutated(rng, item, rate) for item in value for _ in range(rng.choice([1, 1, 2]))]
    if not isinstance(value, dict):
        return value
    changed = {
        rng.choice(KEYS) if rng.random() < rate / 3 else key: mutated(rng, item, rate)
        for key, item in value.items()
        if rng.random() >= rate / 2
    }
    return changed | ({rng.choice(KEYS): rng.choice(ATOMS)} if rng.random() < rate else {})


def written(rng: random.Random, value) -> str:
    """JSON in one of its spellings, at times with a key repeated."""
    if isinstance(value, list):
        return "[" + ",".join(written(rng, item) for item in value) + "]"
    if not isinstance(value, dict):
        return json.dumps(value)
    members = [json.dumps(k) + rng.choice([":", " : ", ":\n"]) + written(rng, v) for k, v in value.items()]
    if members and rng.random() < 0.03:
        members.append(rng.choice(members))
    return "{" + rng.choice([",", ", ", ",\n"]).join(members) + "}"


@pytest.mark.parametrize("seed", range(8))
def test_any_json_is_read_or_refused(seed):
    rng, read, refusals = random.Random(seed), set(), set()
    for _ in range(250):
        text = written(rng, mutated(rng, rng.choice(GOOD), rng.choice([0, 0.02, 0.1, 0.3])))
        for model in MODELS:
            try:
                read.add(type(deserialize(model, parse(text.encode()))))
            except BodyRefusedError as error:
                refusals.add((error.status, str(error)[: len(SCHEMA)]))
    assert read == set(MODELS)
    assert refusals == {(422, SCHEMA)}


MANY = 60_000


@pytest.mark.parametrize(
    ("model", "body"),
    [
        (ChatRequest, f'{{"messages":[{",".join(["{}"] * MANY)}]}}'),
        (ChatRequest, f'{{"messages":[{",".join([HI] * MANY)},{{}}]}}'),
        (ChatRequest, f'{{"messages":[{{"role":"a","content":[{",".join(["{}"] * MANY)}]}}]}}'),
        (ChatRequest, f'{{"messages":[{{"role":"a","tool_calls":[{",".join(["{}"] * MANY)}]}}]}}'),
        (ChatRequest, f'{{"messages":[],"tools":[{",".join(["{}"] * MANY)}]}}'),
        (ChatRequest, "{" + ",".join(f'"k{n}":1' for n in range(MANY)) + ',"messages":1,"seed":"a","n":""}'),
        (ChatRequest, "{" + ",".join(['"model":1'] * MANY) + "}"),
        (CompletionRequest, f'{{"prompt":[{",".join(["1"] * MANY)}]}}'),
    ],
)
def test_a_refusal_takes_time_in_proportion_to_the_body(model, body):
    """Were it quadratic, one of these would take minutes; the bound leaves room for a slow machine."""
    began_s = time.thread_time()
    refusal(model, body)
    assert time.thread_time() - began_s < 5
