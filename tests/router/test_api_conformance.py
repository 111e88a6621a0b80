"""Generated requests against the API description: nothing breaks, and what comes back is what is described.

Bodies come from Schemathesis, which reads the description as a client would: some fit it and some do not.
``API_EXAMPLES=2000 python -m pytest tests/router/test_api_conformance.py`` looks harder than a test run does.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from jsonschema import Draft4Validator
from router.conftest import CHAT_TEMPLATE, EOS, PROFILE_A, ScriptedSource
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from neuron_server.event import TokenEvent
from neuron_server.request import GenerationRequest
from neuron_server.router.app import build_app
from neuron_server.router.json_body import SCHEMA
from neuron_server.router.metrics import Metrics
from neuron_server.router.openapi import document
from neuron_server.router.service import GenerationService
from neuron_server.text.chat import compile_template

HARDER = os.environ.get("API_EXAMPLES")
EXAMPLES = int(HARDER or 12)
DOCUMENT = json.loads(document())
OPERATIONS = [o.ok() for o in schemathesis.openapi.from_dict(DOCUMENT).get_all_operations()]
POSTS = [operation for operation in OPERATIONS if operation.method == "post"]

CALL = '{"function": {"_name": "f", "x": [1]}}'


class Source(ScriptedSource):
    """Says five tokens; under a grammar it calls a tool."""

    call_ids: tuple[int, ...] = ()

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        script = (72, 101, 200, 108, 33, EOS) if request.grammar is None else (*self.call_ids, EOS)
        async for event in ScriptedSource(script).stream(request):
            yield event


#: The second name is not described, in TGI's document neither.
ALIASES = ({"arguments", "parameters"}, {"max_tokens", "max_completion_tokens"})


@dataclass(frozen=True)
class Api:
    """The application on a loop of its own, called from synchronous tests."""

    loop: asyncio.AbstractEventLoop
    client: httpx.AsyncClient

    def send(self, case: Case) -> httpx.Response:
        arguments = case.as_transport_kwargs(base_url="http://t")
        kept = {k: v for k, v in arguments.items() if k in ("method", "url", "headers", "json", "params")}
        if "json" not in arguments and arguments.get("data") is not None:
            kept["content"] = arguments["data"]
        return self.loop.run_until_complete(self.client.request(**kept))


@pytest.fixture(scope="module")
def api(tokenizer) -> Iterator[Api]:
    loop = asyncio.new_event_loop()
    source = Source()
    source.call_ids = tuple(tokenizer.encode(CALL))

    async def open_service() -> GenerationService:
        config = PROFILE_A
        service = GenerationService(config, source, Metrics(config))
        service.open(tokenizer, compile_template(CHAT_TEMPLATE))
        return service

    service = loop.run_until_complete(open_service())
    transport = httpx.ASGITransport(app=build_app(service), raise_app_exceptions=False)
    client = httpx.AsyncClient(transport=transport, base_url="http://t")
    yield Api(loop, client)
    loop.run_until_complete(client.aclose())
    service.close()
    loop.close()


# -- what an answer must be ----------------------------------------------------------------------------------


def check(case: Case, answer: httpx.Response) -> None:
    """The answer is one that the description has, or one of those it tells of in words."""
    case.validate_response(answer, checks=[not_a_server_error])
    kind = answer.headers.get("content-type", "").partition(";")[0]
    if kind == "text/plain" and case.method == "POST":
        assert answer.status_code in (400, 422), answer.text
    elif kind == "text/event-stream":
        check_events(case, answer)
    elif answer.status_code == 422:
        conforms(answer.json(), {"$ref": "#/components/schemas/ErrorResponse"})
    else:
        conformance = [status_code_conformance, content_type_conformance, response_schema_conformance]
        case.validate_response(answer, checks=conformance)


def check_events(case: Case, answer: httpx.Response) -> None:
    responses = DOCUMENT["paths"][case.path][case.method.lower()]["responses"]
    schema = responses[str(answer.status_code)]["content"]["text/event-stream"]["schema"]
    events = [line.removeprefix("data: ") for line in answer.text.split("\n") if line]
    assert events
    assert "Internal server error" not in answer.text
    for event in map(json.loads, (event for event in events if event != "[DONE]")):
        if "error" in event:
            continue  # what was generated was no call
        if case.path == "/invocations" and event.get("choices") == []:
            schema = CHAT_CHUNK  # the usage alone fits two of the route's forms
        conforms(event, schema)


def conforms(value: object, schema: dict) -> None:
    Draft4Validator({**schema, "components": COMPONENTS}).validate(value)


def plain(schema):
    """As JSON Schema: ``nullable`` is a type null, beside an ``allOf`` too, as every reader takes it."""
    if isinstance(schema, list):
        return [plain(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    bare = {key: plain(value) for key, value in schema.items() if key != "nullable"}
    return {"anyOf": [{"type": "null"}, bare]} if schema.get("nullable") is True else bare


COMPONENTS = plain(DOCUMENT["components"])
CHAT_CHUNK = {"$ref": "#/components/schemas/ChatCompletionChunk"}


def may_be_refused(body: object) -> bool:
    """What the description has no words for: the width of a number, a field given under both its names."""
    for part in parts(body):
        if isinstance(part, int) and abs(part) >= 2**31:
            return True
        if isinstance(part, dict) and any(names <= part.keys() for names in ALIASES):
            return True
    return False


def parts(value: object) -> Iterator[object]:
    yield value
    if isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from parts(item)


# -- requests ------------------------------------------------------------------------------------------------


@st.composite
def few_parameters(draw: st.DrawFn, cases: st.SearchStrategy[Case]) -> Case:
    """With three optional fields at most, for of many one is likely to be refused. As a stream or not."""
    case = draw(cases)
    body = case.body
    if isinstance(body, dict):
        for holder in (body, body.get("parameters")):
            if isinstance(holder, dict):
                extra = sorted(set(holder) - {"inputs", "messages", "prompt", "parameters", "stream"})
                kept = draw(st.sets(st.sampled_from(extra), max_size=3)) if extra else set()
                for name in set(extra) - kept:
                    del holder[name]
        body["stream"] = draw(st.booleans())
    return case


def quietly() -> settings:
    return settings(
        max_examples=EXAMPLES,
        derandomize=not HARDER,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],  # no search for a smaller example: that takes minutes
    )


def label(operation) -> str:
    return operation.label


@pytest.mark.parametrize("operation", POSTS, ids=label)
def test_a_body_that_fits_the_description_is_parsed_and_answered_as_described(api, operation):
    @quietly()
    @given(case=few_parameters(operation.as_strategy(GenerationMode.POSITIVE)))
    def run(case: Case) -> None:
        answer = api.send(case)
        check(case, answer)
        if answer.headers["content-type"].startswith("text/plain"):
            assert answer.text.startswith(SCHEMA)
            assert may_be_refused(case.body), (case.body, answer.text)

    run()


@pytest.mark.parametrize("operation", POSTS, ids=label)
def test_a_body_that_does_not_fit_breaks_nothing(api, operation):
    @quietly()
    @given(case=operation.as_strategy(GenerationMode.NEGATIVE))
    def run(case: Case) -> None:
        check(case, api.send(case))

    run()


@pytest.mark.parametrize("operation", [o for o in OPERATIONS if o not in POSTS], ids=label)
def test_a_get_answers_as_described(api, operation):
    case = operation.Case()
    check(case, api.send(case))


# -- answers that chance seldom asks for ---------------------------------------------------------------------

EVERYTHING = {"details": True, "top_n_tokens": 2, "seed": 7, "max_new_tokens": 3}
CHAT = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 60}
TOOL = {"type": "function", "function": {"name": "f", "arguments": {"properties": {"x": {"type": "array"}}}}}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", {"inputs": "Hello", "parameters": {**EVERYTHING, "decoder_input_details": True}}),
        ("/generate", {"inputs": "Hello", "parameters": {"details": True, "best_of": 2, "do_sample": True}}),
        ("/generate_stream", {"inputs": "Hello", "parameters": EVERYTHING}),
        ("/", {"inputs": "Hello", "parameters": EVERYTHING}),
        ("/invocations", {"inputs": "Hello", "parameters": EVERYTHING}),
        ("/invocations", {"inputs": "Hello", "parameters": EVERYTHING, "stream": True}),
        ("/invocations", {"prompt": ["Hello", "He"], "stream": True}),
        ("/invocations", {**CHAT, "stream": True, "stream_options": {"include_usage": True}}),
        ("/v1/chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 2}),
        ("/v1/chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 2, "stream": True}),
        ("/v1/chat/completions", {**CHAT, "tools": [TOOL]}),
        ("/v1/chat/completions", {**CHAT, "tools": [TOOL], "stream": True}),
        ("/v1/completions", {"prompt": ["Hello", "He"]}),
        ("/chat_tokenize", {**CHAT, "tools": [TOOL]}),
    ],
)
def test_an_answer_with_everything_asked_for_is_as_described(api, path, body):
    operation = next(o for o in POSTS if o.path == path)
    case = operation.Case(body=body, media_type="application/json")
    answer = api.send(case)
    assert answer.status_code == 200, answer.text
    assert "tools" not in body or path == "/chat_tokenize" or "tool_calls" in answer.text
    check(case, answer)
