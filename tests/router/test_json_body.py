"""What serde_json and axum refuse is refused, as plain text (conformance cases 44 to 59)."""

from __future__ import annotations

import json

import pytest

JSON = {"content-type": "application/json"}
SCHEMA = "Failed to deserialize the JSON body into the target type: "
SYNTAX = "Failed to parse the request body as JSON: "
OK = {"max_new_tokens": 1}

case = pytest.mark.case


async def post(one, body: bytes, headers=JSON, path="/generate"):
    return await one.client.post(path, content=body, headers=headers)


def assert_text(answer, status, text):
    assert (answer.status_code, answer.headers["content-type"]) == (status, "text/plain; charset=utf-8")
    assert answer.text == text


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({}, marks=case(44)),
        {"content-type": "text/plain"},
        {"content-type": "application/xml"},
    ],
)
async def test_another_content_type_is_415(harness, headers):
    answer = await post(harness(), b'{"inputs":"a"}', headers)
    assert_text(answer, 415, "Expected request with `Content-Type: application/json`")


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("application/json; charset=utf-8", marks=case(45)),
        pytest.param("application/problem+json", marks=case(45)),
        "Application/JSON",
        "application/json;x",
    ],
)
async def test_any_json_content_type_is_accepted(harness, kind):
    body = json.dumps({"inputs": "a", "parameters": OK}).encode()
    assert (await post(harness(), body, {"content-type": kind})).status_code == 200


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        pytest.param(b"", "EOF while parsing a value at line 1 column 0", marks=case(47)),
        pytest.param(b'{"inputs":"a"', "EOF while parsing an object at line 1 column 13", marks=case(46)),
        (b"{", "EOF while parsing an object at line 1 column 1"),
        (b"nope", "expected value at line 1 column 1"),
        (b'{"inputs":"a",}', "key must be a string at line 1 column 15"),
        (b'{"inputs":"\xff"}', "invalid unicode code point at line 1 column 11"),
        (b'{"inputs":"\\ud800"}', "lone leading surrogate in hex escape at line 1 column 19"),
        (b'{"inputs":NaN}', "expected value at line 1 column 13"),
        (b'{"inputs":1e999}', "number out of range at line 1 column 15"),
        (b'{"inputs":' + b"9" * 5000 + b"}", "number out of range at line 1 column 5010"),
        (b"[" * 100_000, "recursion limit exceeded at line 1 column 100000"),
        (b'{"a":' * 100_000, "recursion limit exceeded at line 1 column 500000"),
        (b'{"a":' * 64 + b"[" * 64 + b"]" * 64 + b"}" * 64, "recursion limit exceeded at line 1 column 512"),
        (b"\xef\xbb\xbf{}", "expected value at line 1 column 3"),
    ],
)
async def test_malformed_json_is_400(harness, body, reason):
    assert_text(await post(harness(), body), 400, SYNTAX + reason)


async def test_as_deep_as_serde_goes_is_deep_enough(harness):
    deep = b"[" * 126 + b"]" * 126
    wide = b"[" + b",".join([b"[{}]"] * 1000) + b"]"
    for ignored in (deep, wide):
        body = b'{"inputs":"Hello","ignored":' + ignored + b',"parameters":{"max_new_tokens":1}}'
        assert (await post(harness(), body)).status_code == 200


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        pytest.param("{}", "missing field `inputs` at line 1 column 2", marks=case(48)),
        pytest.param(
            '{"inputs":["a"]}',
            "inputs: invalid type: sequence, expected a string at line 1 column 10",
            marks=case(49),
        ),
        pytest.param(
            '{"inputs":1}',
            "inputs: invalid type: integer `1`, expected a string at line 1 column 11",
            marks=case(49),
        ),
        pytest.param(
            '{"inputs":null}',
            "inputs: invalid type: null, expected a string at line 1 column 14",
            marks=case(49),
        ),
        ("[1]", "invalid type: sequence, expected struct GenerateRequest at line 1 column 0"),
        pytest.param(
            '{"inputs":"a","inputs":"b"}', "duplicate field `inputs` at line 1 column 26", marks=case(58)
        ),
        (
            '{"inputs":"a","parameters":{"top_k":1,\n"top_k":2}}',
            "parameters: duplicate field `top_k` at line 2 column 9",
        ),
        pytest.param(
            '{"inputs":"a","parameters":null}',
            "parameters: invalid type: null, expected struct GenerateParameters at line 1 column 31",
            marks=case(54),
        ),
    ],
)
async def test_json_that_does_not_fit_is_422_text(harness, body, reason):
    assert_text(await post(harness(), body.encode()), 422, SCHEMA + reason)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        pytest.param("max_new_tokens", -1, "invalid value: integer `-1`, expected u32", marks=case(50)),
        pytest.param("max_new_tokens", "20", 'invalid type: string "20", expected u32', marks=case(51)),
        pytest.param(
            "max_new_tokens", 20.0, "invalid type: floating point `20.0`, expected u32", marks=case(51)
        ),
        pytest.param("max_new_tokens", True, "invalid type: boolean `true`, expected u32", marks=case(51)),
        ("max_new_tokens", 2**32, "invalid value: integer `4294967296`, expected u32"),
        pytest.param("seed", -1, "invalid value: integer `-1`, expected u64", marks=case(52)),
        pytest.param("seed", 1.5, "invalid type: floating point `1.5`, expected u64", marks=case(52)),
        ("seed", 2**64, "invalid type: floating point `1.8446744073709552e+19`, expected u64"),
        ("best_of", -1, "invalid value: integer `-1`, expected usize"),
        ("truncate", "x", 'invalid type: string "x", expected usize'),
        ("top_k", 2**31, "invalid value: integer `2147483648`, expected i32"),
        ("temperature", "1.0", 'invalid type: string "1.0", expected f32'),
        ("temperature", True, "invalid type: boolean `true`, expected f32"),
        pytest.param("stop", None, "invalid type: null, expected a sequence", marks=case(55)),
        pytest.param("stop", "x", 'invalid type: string "x", expected a sequence', marks=case(55)),
        pytest.param("do_sample", None, "invalid type: null, expected a boolean", marks=case(55)),
        pytest.param("do_sample", 1, "invalid type: integer `1`, expected a boolean", marks=case(55)),
        ("watermark", None, "invalid type: null, expected a boolean"),
        ("details", 0, "invalid type: integer `0`, expected a boolean"),
        ("decoder_input_details", "yes", 'invalid type: string "yes", expected a boolean'),
        ("adapter_id", 3, "invalid type: integer `3`, expected a string"),
        ("grammar", 3, "invalid type: integer `3`, expected struct GrammarType"),
    ],
)
async def test_each_type_is_strict(harness, name, value, reason):
    answer = await harness().generate("a", **{name: value})
    assert (answer.status_code, answer.headers["content-type"]) == (422, "text/plain; charset=utf-8")
    assert answer.text.startswith(f"{SCHEMA}parameters.{name}: {reason} at line 1 column ")


async def test_a_bad_list_item_is_named_by_its_index(harness):
    answer = await harness().generate("a", stop=["x", 3])
    assert answer.text.startswith(f"{SCHEMA}parameters.stop[1]: invalid type: integer `3`, expected a string")


async def test_an_unknown_grammar_type_is_422_text(harness):
    answer = await harness().generate("a", grammar={"type": "text", "value": 1})
    assert answer.text.startswith(
        f"{SCHEMA}parameters.grammar.type: unknown variant `text`, expected one of `json`"
    )
    answer = await harness().generate("a", grammar={"type": "regex"})
    assert "parameters.grammar: missing field `value`" in answer.text


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(
            '{"inputs":"a","parameters":{"temperature":1,"top_k":null,"grammar":null,"max_new_tokens":1}}',
            marks=case(56),
        ),
        pytest.param(
            '{"inputs":"a","foo":1,"parameters":{"bar":2,"stop_sequences":["x"],"max_new_tokens":1}}',
            marks=case(57),
        ),
        '{"inputs":"a","foo":{"x":1,"x":2},"foo":3,"parameters":{"max_new_tokens":1}}',
        '{"inputs":"a","parameters":{"max_new_tokens":1}} and more',
        ' \n{"inputs":"\\ud83d\\ude00","parameters":{"max_new_tokens":1}}',
    ],
)
async def test_unknown_keys_nulls_and_trailing_bytes_are_accepted(harness, body):
    answer = await post(harness(), body.encode())
    assert answer.status_code == 200, answer.text


async def test_the_first_of_two_faults_is_reported(harness):
    answer = await post(harness(), b'{"parameters":{"seed":-1,"best_of":"x"},"inputs":1}')
    assert "parameters.seed" in answer.text


async def test_the_payload_limit_holds_to_the_byte(harness):
    one = harness(payload_limit=60)
    body = b'{"inputs":"a","parameters":{"max_new_tokens":1}}'
    assert (await post(one, body.ljust(60))).status_code == 200
    assert_text(
        await post(one, body.ljust(61)), 413, "Failed to buffer the request body: length limit exceeded"
    )


@pytest.mark.case(59)
async def test_the_limit_is_two_million_bytes_unless_told_otherwise(harness):
    body = b'{"inputs":"a","parameters":{"max_new_tokens":1}}'
    assert (await post(harness(), body.ljust(2_000_000))).status_code == 200
    answer = await post(harness(), body.ljust(2_000_001))
    assert_text(answer, 413, "Failed to buffer the request body: length limit exceeded")


async def test_a_chunked_body_is_cut_off_at_the_limit(harness):
    sent = 0

    async def chunks():
        nonlocal sent
        while True:
            sent += 1
            yield b" " * 1000

    answer = await harness(payload_limit=10_000).client.post("/generate", content=chunks(), headers=JSON)
    assert answer.status_code == 413
    assert sent <= 12


async def test_a_body_of_a_million_faults_is_refused_once(harness):
    body = b'{"inputs":"a","parameters":{"stop":[' + b"1," * 900_000 + b"1]}}"
    answer = await post(harness(), body)
    assert answer.status_code == 422
    assert "parameters.stop[0]" in answer.text


@pytest.mark.case(91)
async def test_a_refused_body_is_no_stream(harness):
    for path in ("/generate_stream", "/"):
        answer = await post(harness(), b"{}", path=path)
        assert answer.status_code == 422
        assert answer.headers["content-type"].startswith("text/plain")
