"""GET routes, unknown paths, readiness (conformance cases 60, 145 to 147)."""

from __future__ import annotations

import asyncio

import pytest
from conformance import MORE_KEYS

from neuron_server.router.replicas import ReplicaState
from neuron_server.session import Phase

POSTS = [
    *("/", "/generate", "/generate_stream", "/v1/chat/completions", "/v1/completions"),
    *("/tokenize", "/chat_tokenize", "/invocations", "/vertex"),
]
GETS = [
    *("/", "/health", "/ping", "/info", "/metrics", "/v1/models"),
    *("/docs", "/api-doc/openapi.json"),
]
INFO_KEYS = [
    *("model_id", "model_sha", "model_pipeline_tag", "max_concurrent_requests", "max_best_of"),
    *("max_stop_sequences", "max_input_tokens", "max_total_tokens", "validation_workers"),
    *("max_client_batch_size", "router", "version", "sha", "docker_label"),
]


@pytest.mark.case(145)
@pytest.mark.parametrize("path", ["/health", "/ping", "/"])
async def test_a_ready_server_is_healthy_without_words(harness, path):
    answer = await harness().client.get(path)
    assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.case(146, deviation=MORE_KEYS)
@pytest.mark.parametrize(
    ("phase", "opened", "shown"),
    [
        (Phase.LOADING, False, "loading"),
        (Phase.WARMING_UP, False, "warming up"),
        (Phase.FAILED, False, "failed"),
        (Phase.READY, False, "loading"),  # the tokenizer is not there yet
        (Phase.LOADING, True, "restarting"),
        (Phase.WARMING_UP, True, "restarting"),
    ],
)
async def test_health_tells_the_phase(harness, phase, opened, shown):
    one = harness(opened=opened)
    one.source.phase = phase
    answer = await one.client.get("/health")
    assert answer.status_code == 503
    assert answer.json() == {"error": "unhealthy", "error_type": "healthcheck", "phase": shown}


@pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/"])
async def test_a_loading_server_refuses_to_generate_and_says_why(harness, path):
    one = harness(opened=False)
    one.source.phase = Phase.WARMING_UP
    answer = await one.generate("Hello", path)
    assert answer.status_code == 503
    assert answer.json()["error_type"] == "unavailable"
    assert "warming up" in answer.json()["error"]


async def test_a_restarting_generator_makes_requests_wait_not_fail(harness):
    one = harness()
    one.source.phase = Phase.LOADING
    answer = await one.generate("Hello", max_new_tokens=1)  # the replica set is what waits
    assert answer.status_code == 200


async def test_a_draining_server_finishes_what_it_has_and_refuses_the_rest(harness):
    one = harness()
    one.source.gate.clear()
    running = asyncio.create_task(one.generate("Hello", max_new_tokens=1))
    await one.source.arrived.wait()
    one.service.drain()
    answer = await one.generate("Hello", "/generate_stream")
    assert answer.status_code == 503
    assert answer.json()["error_type"] == "unavailable"
    assert "draining" in answer.json()["error"]
    assert (await one.client.get("/health")).json()["phase"] == "draining"
    idle = asyncio.create_task(one.service.idle())
    one.source.gate.set()
    assert (await running).status_code == 200
    await idle


@pytest.mark.case(147, deviation=MORE_KEYS)
async def test_info_has_tgis_keys_first_and_in_order(harness):
    answer = await harness().client.get("/info")
    info = answer.json()
    assert list(info)[:14] == INFO_KEYS
    assert info["model_id"] == "M"
    assert info["max_input_tokens"] == 1024
    assert info["model_sha"] is None
    assert info["router"] == "text-generation-router"
    assert info["model_dtype"] == "float32"


async def test_info_tells_what_the_hub_the_image_and_nobody_knows(harness, monkeypatch):
    monkeypatch.setenv("DOCKER_LABEL", "sha-1234")
    one = harness(pipeline_tag="text-generation", revision="abc")
    info = (await one.client.get("/info")).json()
    assert (info["model_pipeline_tag"], info["model_sha"]) == ("text-generation", "abc")
    assert (info["docker_label"], info["sha"]) == ("sha-1234", None)
    monkeypatch.delenv("DOCKER_LABEL")
    info = (await harness().client.get("/info")).json()
    assert (info["model_pipeline_tag"], info["docker_label"]) == (None, None)


async def test_info_tells_of_each_replica(harness):
    one = harness(shard_uds_paths=("/a", "/b"))
    one.source.states = (ReplicaState(0, "ready", 1, 3), ReplicaState(1, "lost"))
    assert (await one.client.get("/info")).json()["replicas"] == [
        {"rank": 0, "phase": "ready", "free_slots": 1, "queued": 3},
        {"rank": 1, "phase": "lost", "free_slots": 0, "queued": 0},
    ]


@pytest.mark.case(148)
async def test_the_list_of_models_has_the_one_that_is_served(harness):
    for opened in (True, False):
        answer = await harness(opened=opened).client.get("/v1/models")
        assert answer.status_code == 200
        assert answer.text == (
            '{"object":"list","data":[{"id":"M","object":"model","created":0,"owned_by":"M"}]}'
        )


@pytest.mark.parametrize(("tag", "echoed"), [(None, True), ("text-generation", True), ("other", False)])
async def test_the_prompt_is_echoed_by_default_where_the_model_continues_texts(harness, tag, echoed):
    one = harness(pipeline_tag=tag)
    for path in ("/", "/invocations"):
        answer = await one.generate("Hello", path, max_new_tokens=1)
        assert answer.json()[0]["generated_text"].startswith("Hello") is echoed


async def test_info_answers_before_a_generator_is_there(harness):
    one = harness(opened=False)
    one.source.info = None
    assert (await one.client.get("/info")).json()["model_dtype"] is None


@pytest.mark.case(60)
@pytest.mark.parametrize(
    "path", ["/nope", "/generate/", "/v1/chat/completions/", "/v1/models/M", "/openapi.json"]
)
async def test_an_unknown_path_is_an_empty_404(harness, path):
    one = harness()
    for answer in (await one.client.get(path), await one.client.post(path, json={})):
        assert (answer.status_code, answer.content) == (404, b"")


@pytest.mark.case(60)
@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/generate", "POST"),
        ("DELETE", "/generate_stream", "POST"),
        ("POST", "/health", "GET,HEAD"),
        ("PUT", "/", "GET,HEAD,POST"),
        ("POST", "/v1/models", "GET,HEAD"),
        ("POST", "/docs", "GET,HEAD"),
        *(("GET", path, "POST") for path in POSTS if path != "/"),
        *(("HEAD", path, "POST") for path in POSTS if path != "/"),
    ],
)
async def test_a_wrong_method_is_an_empty_405_that_says_which_are_right(harness, method, path, allowed):
    answer = await harness().client.request(method, path)
    assert (answer.status_code, answer.content, answer.headers["allow"]) == (405, b"", allowed)


@pytest.mark.case(61)
@pytest.mark.parametrize("path", GETS)
async def test_what_answers_get_answers_head(harness, path):
    one = harness()
    got, head = await one.client.get(path), await one.client.head(path)
    assert (got.status_code, head.status_code) == (200, 200)
    assert head.headers.get("content-type") == got.headers.get("content-type")


@pytest.mark.case(44, 46, 47, 59)
@pytest.mark.parametrize("path", POSTS)
async def test_every_body_is_refused_for_the_same_reasons_in_the_same_order(harness, path):
    one = harness(payload_limit=64)
    json_type = {"content-type": "application/json"}
    long = b'{"inputs":"' + b"x" * 64 + b'"}'
    answer = await one.client.post(path, content=long, headers={"content-type": "text/plain"})
    assert (answer.status_code, answer.text) == (
        415,
        "Expected request with `Content-Type: application/json`",
    )
    answer = await one.client.post(path, content=long, headers=json_type)
    assert (answer.status_code, answer.text) == (
        413,
        "Failed to buffer the request body: length limit exceeded",
    )
    for content in (b"", b"{", b"{'a': 1}"):
        answer = await one.client.post(path, content=content, headers=json_type)
        assert answer.status_code == 400
        assert answer.text.startswith("Failed to parse the request body as JSON: ")
    for content in (b"[]", b"null", b"{}", b'"x"'):
        answer = await one.client.post(path, content=content, headers=json_type)
        assert answer.status_code == 422
        assert answer.text.startswith("Failed to deserialize the JSON body into the target type: ")
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"


@pytest.mark.parametrize("path", POSTS)
async def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_defect(harness, caplog, path):
    one = harness()
    messages = iter(
        [{"type": "http.request", "body": b'{"inp', "more_body": True}, {"type": "http.disconnect"}]
    )
    headers = [(b"content-type", b"application/json"), (b"content-length", b"40")]
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers}
    sent = []

    async def receive():
        return next(messages)

    async def send(message):
        sent.append(message)

    await one.app(scope, receive, send)  # raises nothing, so that uvicorn has no traceback to log
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
    assert sent[0]["status"] == 499
    assert one.source.requests == []
