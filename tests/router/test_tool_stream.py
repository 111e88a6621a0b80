"""Tool calls taken apart token by token (conformance cases 130 and 131)."""

from __future__ import annotations

import json
import random

import orjson
import pytest

from neuron_server.router.tool_stream import CallDelta, ToolStream

# fmt: off
WEATHER = [
    '{"', "function", '":', ' {"', "_", "name", '":', ' "', "get", "_current", "_weather", '",',
    ' "', "location", '":', ' "', "San", " Francisco", ",", " CA", '",',
    ' "', "format", '":', ' "', "c", "elsius", '"}}',
]
# fmt: on


def feed(tokens) -> tuple[ToolStream, list[CallDelta | None]]:
    stream = ToolStream()
    return stream, [stream.feed(token) for token in tokens]


def arguments(deltas) -> str:
    return "".join(delta.arguments for delta in deltas if delta is not None)


@pytest.mark.case(130)
def test_the_weather_call_comes_out_as_tgis_does():
    stream, deltas = feed(WEATHER)
    assert deltas[:11] == [None] * 11
    assert deltas[11] == CallDelta("get_current_weather", "{")
    assert [delta.arguments for delta in deltas[12:]] == [*WEATHER[12:-1], '"}']
    assert all(delta.name is None for delta in deltas[12:])
    assert arguments(deltas) == '{ "location": "San Francisco, CA", "format": "celsius"}'
    assert stream.complete


@pytest.mark.case(131)
def test_no_tool_is_known_with_its_last_quote_and_nothing_comes_before():
    stream, deltas = feed([*WEATHER[:8], "no", "_tool", '",'])
    assert deltas[:10] == [None] * 10
    assert stream.name == "no_tool"


@pytest.mark.parametrize("tail", [["}}"], ["}", "}"], [" }", " } "], ['"}}']])
def test_a_call_without_arguments_is_an_empty_object(tail):
    head = '{"function":{"_name":"f' + ("" if tail[0][0] == '"' else '"')
    stream, deltas = feed([head, *tail])
    assert json.loads(arguments(deltas)) == {}
    assert stream.name == "f"
    assert stream.complete


def test_what_follows_the_call_is_nothing():
    stream, deltas = feed(
        ['{"function":{"_name":"f","a":1}', "}", "", "\n", "</s>", '{"function":{"_name":"g"}}']
    )
    assert deltas[0] == CallDelta("f", '{"a":1}')
    assert deltas[1:] == [CallDelta(None, ""), *[None] * 4]
    assert stream.name == "f"


def test_every_token_of_the_arguments_is_told_even_one_without_text():
    _, deltas = feed(['{"function":{"_name":"f"', ",", "", '"a":"', "", '"}}'])
    assert deltas == [
        CallDelta("f", "{"),
        CallDelta(None, ""),
        CallDelta(None, ""),
        CallDelta(None, '"a":"'),
        CallDelta(None, ""),
        CallDelta(None, '"}'),
    ]


def test_a_call_that_is_cut_is_not_complete():
    for n in range(len(WEATHER)):
        stream, deltas = feed(WEATHER[:n])
        assert not stream.complete
        assert (stream.name is None) == (n < 12)
        assert '{ "location": "San Francisco, CA", "format": "celsius"}'.startswith(arguments(deltas))


@pytest.mark.parametrize(
    "text", ["", "5", "{}", '{"function":', '{"function":{"a":1}}', "Hello", '{"f":{"_name":"f"}}']
)
def test_text_that_is_no_call_never_has_a_name(text):
    stream, deltas = feed(text)
    assert stream.name is None
    assert set(deltas) <= {None}


def test_a_name_that_is_no_string_of_json_is_refused():
    for name in (r"\q", r"\ud800", "a\nb"):
        with pytest.raises(orjson.JSONDecodeError):
            feed(['{"function":{"_name":"' + name + '"'])


# -- any call, written and cut in any way --------------------------------------------------------------------

NAMES = [
    "f",
    'quo"te',
    "back\\slash",
    "}}",
    '","a":"',
    "uni\u00e9\u4e2d\U0001f600",
    "tab\t",
    "",
    "a/b~c",
    "_name",
]
STRINGS = [
    "",
    "x",
    "}",
    "{",
    '"',
    "\\",
    '\\"}',
    "\n",
    "\u00e9\U0001f600",
    "a, b",
    '{"function":{"_name":"g"}}',
]


def value(rng: random.Random, depth: int = 0):
    kind = rng.randrange(7 if depth < 3 else 4)
    if kind == 0:
        return rng.choice(STRINGS)
    if kind == 1:
        return rng.choice([0, -1, 2.5, 1e300, 10**30])
    if kind == 2:
        return rng.choice([None, True, False])
    if kind == 3:
        return "".join(rng.choices('{}",:\\ \u00e9ab', k=rng.randrange(6)))
    if kind == 4:
        return [value(rng, depth + 1) for _ in range(rng.randrange(3))]
    return {rng.choice(STRINGS) + str(n): value(rng, depth + 1) for n in range(rng.randrange(4))}


def spaced(rng: random.Random, item) -> str:
    """JSON with white space wherever it may be, and characters escaped or not."""

    def space() -> str:
        return rng.choice(["", "", " ", "\n", "\t ", "\r\n"])

    def string(text: str) -> str:
        return json.dumps(text, ensure_ascii=rng.random() < 0.5)

    if isinstance(item, dict):
        pairs = [f"{space()}{string(k)}{space()}:{space()}{spaced(rng, v)}{space()}" for k, v in item.items()]
        return "{" + (",".join(pairs) or space()) + "}"
    if isinstance(item, list):
        return "[" + ",".join(f"{space()}{spaced(rng, v)}{space()}" for v in item) + "]"
    return string(item) if isinstance(item, str) else json.dumps(item)


def cut(rng: random.Random, text: str) -> list[str]:
    at = sorted(rng.choices(range(len(text) + 1), k=rng.randrange(len(text) + 1)))
    return [text[a:b] for a, b in zip([0, *at], [*at, len(text)], strict=True)]


@pytest.mark.parametrize("seed", range(150))
def test_any_call_survives_any_cut(seed):
    rng = random.Random(seed)
    name = rng.choice(NAMES)
    wanted = {f"k{n}" + rng.choice(STRINGS): value(rng) for n in range(rng.randrange(4))}
    # the head as the grammar has it: nothing in its keys is escaped
    head = json.dumps({"function": {"_name": name}})[:-2]
    head = head.replace('": ', rng.choice(['":', '" :  ', '":\n']), 2)
    body = spaced(rng, wanted)
    envelope = (
        rng.choice(["", " "]) + head + rng.choice(["", " ", "\n"]) + ("," + body[1:] if wanted else body[1:])
    )
    for tokens in (cut(rng, envelope + rng.choice(["}", "\n}"])) for _ in range(4)):
        stream, deltas = feed(tokens)
        told = [delta for delta in deltas if delta is not None]
        assert [delta.name for delta in told] == [name] + [None] * (len(told) - 1)
        assert json.loads(arguments(deltas)) == wanted
        assert stream.complete
        if wanted:
            assert arguments(deltas) == body
