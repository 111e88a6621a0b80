"""Our API description: valid, true to what is parsed, and TGI's but for the differences named here."""

from __future__ import annotations

import json

import pytest
from openapi_spec_validator import validate
from router.openapi_facts import compare, facts, published

from neuron_server.router.documented import INLINE_MARK, NAME
from neuron_server.router.openai_schema import ChatRequest, CompletionRequest, ToolChoice
from neuron_server.router.openapi import OPERATIONS, document
from neuron_server.router.tgi_schema import CompatGenerateRequest, GenerateParameters

PATH = "/api-doc/openapi.json"

_UNBOUNDED = (
    "TGI tells the size of its pieces, 1024; without the field both generate as much as there is room for"
)
_STATUS = "a refused stream has its real status and TGI's error object, so it is JSON and no stream"
_ONE_OR_MANY = "one string is taken, too, as OpenAI takes it"

#: Address, with everything below it -> why it is not as in TGI's document.
DIFFERENCES = {
    "GenerateParameters.details": "TGI tells true; its code and ours have false",
    "GenerateParameters.max_new_tokens": _UNBOUNDED,
    "ChatRequest.max_tokens": _UNBOUNDED,
    "CompletionRequest.max_tokens": _UNBOUNDED,
    "ChatRequest.stop": _ONE_OR_MANY,
    "CompletionRequest.stop": _ONE_OR_MANY,
    "Prompt": "TGI tells a list only; its code and ours take one string, too",
    "ChatRequest.response_format": "OpenAI's own spellings are taken, too",
    "ChatRequest.stream_options": "TGI tells that null is allowed; its code and ours refuse it",
    "ToolChoice|3.type": "TGI does not tell of it; its code and ours refuse a choice without it",
    "Info.model_output": "not TGI's: who chooses the tokens, since a device that samples refuses much",
    "SagemakerResponse|0": "TGI tells one answer; the code answers as `/` does, with a list of one",
    "GET /v1/models 200": "TGI tells one model; its code and ours answer with a list",
    "POST /generate_stream 422": _STATUS,
    "POST /generate_stream 424": _STATUS,
    "POST /generate_stream 429": _STATUS,
    "POST /generate_stream 500": _STATUS,
}


@pytest.fixture(scope="module")
def ours() -> dict:
    return json.loads(document())


def covers(listed: str, address: str) -> bool:
    return address == listed or (address.startswith(listed) and address[len(listed)] in ".|[ ")


def test_it_is_tgis_description_but_for_the_differences_listed(ours):
    comparison = compare(published(), facts(ours))
    unexplained = {a for a in comparison.deviations if not any(covers(listed, a) for listed in DIFFERENCES)}
    assert not unexplained, comparison.table()


def test_every_difference_listed_exists(ours):
    deviations = compare(published(), facts(ours)).deviations
    assert [d for d in DIFFERENCES if not any(covers(d, a) for a in deviations)] == []


def test_the_comparison_tells_what_is_different_missing_and_added():
    theirs = {"A": "object", "A.x": "string", "A.y": "integer int32", "GET /": "health"}
    mine = {"A": "object", "A.x": "string, nullable", "A.z": "any", "GET /": "health"}
    comparison = compare(theirs, mine)
    assert comparison.deviations == {"A.x", "A.y", "A.z"}
    total = next(line for line in comparison.table().splitlines() if line.startswith("TOTAL"))
    assert total.split() == ["TOTAL", "2", "1", "1", "1"]
    assert "different  A.x: TGI 'string', ours 'string, nullable'" in comparison.table()


def test_facts_are_the_same_however_openapi_spells_them():
    def fact(**field):
        schemas = {"S": {"type": "object", "properties": {"f": field}}}
        return facts({"openapi": "3.0.3", "paths": {}, "components": {"schemas": schemas}})["S.f"]

    number = {"type": "number", "nullable": True}
    assert fact(**number, default="null", exclusiveMinimum=0) == fact(
        **number, default=None, minimum=0, exclusiveMinimum=True
    )
    assert fact(**number, default=0.5) != fact(**number, default=0.25)
    assert fact(type="string", default="1") != fact(type="integer", default=1)


def test_it_is_valid_openapi(ours):
    validate(ours)


def test_it_describes_every_route_that_tgi_describes_once(ours):
    described = [(path, method) for path, methods in ours["paths"].items() for method in methods]
    assert sorted(described) == sorted((o.path, o.method) for o in OPERATIONS)


@pytest.mark.parametrize("model", [GenerateParameters, CompatGenerateRequest, ChatRequest, CompletionRequest])
def test_defaults_described_are_those_of_the_parser(ours, model):
    described = ours["components"]["schemas"][model.__name__]["properties"]
    for name, field in model.model_fields.items():
        if "default" in described[name]:
            parsed = field.get_default(call_default_factory=True)
            shown = parsed.mode if isinstance(parsed, ToolChoice) else parsed
            assert described[name]["default"] == shown, name


def test_no_mark_of_ours_is_left(ours):
    assert NAME not in json.dumps(ours)
    assert INLINE_MARK not in json.dumps(ours)
    assert not any(name.startswith("_") for name in ours["components"]["schemas"])


# -- served --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        (PATH, "application/json"),
        ("/docs", "text/html; charset=utf-8"),
        ("/docs/", "text/html; charset=utf-8"),
        ("/docs/swagger-ui-bundle.js", "text/javascript; charset=utf-8"),
        ("/docs/swagger-ui.css", "text/css; charset=utf-8"),
        ("/docs/favicon-32x32.png", "image/png"),
    ],
)
async def test_description_and_page_are_open_to_anybody_from_the_start(harness, path, content_type):
    client = harness(opened=False, api_key="Secret").client
    got, head = await client.get(path), await client.head(path)
    assert (got.status_code, head.status_code) == (200, 200)
    assert got.headers["content-type"] == head.headers["content-type"] == content_type
    assert got.headers["access-control-allow-origin"] == "*"
    assert head.content == b""
    assert int(head.headers["content-length"]) == len(got.content) > 0


async def test_the_description_served_is_the_document(harness):
    assert (await harness().client.get(PATH)).content == document()


@pytest.mark.parametrize(("path", "assets", "root"), [("/docs", "docs/", ""), ("/docs/", "", "../")])
async def test_the_page_refers_to_its_files_here_and_nowhere_else(harness, path, assets, root):
    html = (await harness().client.get(path)).text
    for name in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon-32x32.png"):
        assert f'"{assets}{name}"' in html
    assert f"'{root}api-doc/openapi.json'" in html
    assert "http" not in html


@pytest.mark.parametrize("path", ["/docs/other.js", "/docs/../app.py", "/docs/%2e%2e/__init__.py"])
async def test_no_other_file_is_served(harness, path):
    assert (await harness().client.get(path)).status_code == 404


async def test_the_page_cannot_be_posted_to(harness):
    answer = await harness().client.post("/docs", json={})
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET,HEAD")
