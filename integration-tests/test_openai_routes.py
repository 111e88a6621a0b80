"""OpenAI's routes and the platforms' around them, on the whole server: launcher, generator, real sockets."""

from __future__ import annotations

import json
import socket

import httpx
import pytest

PROMPTS = ["The list type is", "A function", "In Python", "The with statement"]
CHAT = {"messages": [{"role": "user", "content": "What is a list?"}], "temperature": 0, "max_tokens": 12}
COMPLETION = {"temperature": 0, "max_tokens": 12}
OPEN = ["/", "/health", "/ping", "/info", "/metrics", "/v1/models", "/docs", "/api-doc/openapi.json"]
KEY = {"authorization": "Bearer Secret"}


@pytest.fixture
def client(demo):
    with demo.client() as client:
        yield client


def events(client, path: str, body: dict) -> list[dict]:
    """Data events of a stream that ends with one ``[DONE]``."""
    with client.stream("POST", path, json={**body, "stream": True}) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"] == "text/event-stream"
        assert response.headers["x-accel-buffering"] == "no"
        lines = [line for line in response.iter_lines() if line]
    assert lines.pop() == "data: [DONE]"
    assert all(line.startswith("data: {") for line in lines)
    return [json.loads(line[6:]) for line in lines]


def post(client, path: str, body: dict) -> httpx.Response:
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response


def running(client) -> float:
    """Occupied slots, as the router heard last."""
    lines = client.get("/metrics").text.splitlines()
    found = next(line for line in lines if line.startswith("tgi_batch_current_size"))
    return float(found.split()[1])


# -- chat ----------------------------------------------------------------------------------------------------


def test_a_chat_and_its_stream_say_the_same_and_count_the_same(client):
    whole = post(client, "/v1/chat/completions", CHAT).json()
    chunks = events(client, "/v1/chat/completions", {**CHAT, "stream_options": {"include_usage": True}})
    *spoken, last = chunks
    text = "".join(chunk["choices"][0]["delta"]["content"] for chunk in spoken)
    assert text == whole["choices"][0]["message"]["content"]
    assert text
    assert last["choices"] == []
    assert last["usage"] == whole["usage"]
    assert last["usage"]["completion_tokens"] == len(spoken)
    assert spoken[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert all(chunk["usage"] is None for chunk in spoken)


def test_a_chat_is_its_template_continued(client):
    tokenized = post(client, "/chat_tokenize", CHAT).json()
    whole = post(client, "/v1/chat/completions", CHAT).json()
    assert "What is a list?" in tokenized["templated_text"]
    assert len(tokenized["tokenize_response"]) == whole["usage"]["prompt_tokens"]


# -- completions ---------------------------------------------------------------------------------------------


def test_four_prompts_are_each_answered_as_if_alone(client):
    body = {**COMPLETION, "prompt": PROMPTS}
    response = post(client, "/v1/completions", body)
    together = response.json()
    assert sorted(choice["index"] for choice in together["choices"]) == [0, 1, 2, 3]
    texts = {choice["index"]: choice["text"] for choice in together["choices"]}
    alone = [post(client, "/v1/completions", {**COMPLETION, "prompt": p}).json() for p in PROMPTS]
    assert [texts[n] for n in range(4)] == [answer["choices"][0]["text"] for answer in alone]
    for count in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert together["usage"][count] == sum(answer["usage"][count] for answer in alone)
    assert response.headers["x-prompt-tokens"] == str(together["usage"]["prompt_tokens"])
    assert response.headers["x-compute-characters"] == str(sum(map(len, PROMPTS)))
    assert "x-compute-time" not in response.headers


def test_four_prompts_stream_at_once_to_the_same_texts(client):
    whole = post(client, "/v1/completions", {**COMPLETION, "prompt": PROMPTS}).json()
    found = events(client, "/v1/completions", {**COMPLETION, "prompt": PROMPTS})
    for choice in whole["choices"]:
        own = [e for e in found if e["choices"][0]["index"] == choice["index"]]
        reason = own[-1]["choices"][0]["finish_reason"]
        text = "".join(e["choices"][0]["text"] for e in own)
        assert text.startswith(choice["text"])  # behind which only an EOS token's literal may stand
        assert reason in ("length", "eos_token")
        assert own[-1]["usage"]["completion_tokens"] == len(own)
        assert all("usage" not in e and e["choices"][0]["finish_reason"] == "" for e in own[:-1])
    order = [e["choices"][0]["index"] for e in found]
    assert order != sorted(order)  # not one after the other


def test_a_refused_prompt_is_an_event_in_a_stream_and_the_whole_answer_otherwise(client):
    body = {**COMPLETION, "prompt": [PROMPTS[0], ""]}
    found = events(client, "/v1/completions", body)
    errors = [event["error"] for event in found if "error" in event]
    assert errors == [
        {"message": "Input validation error: `inputs` cannot be empty", "http_status_code": 422}
    ]
    assert len(found) > 1
    response = client.post("/v1/completions", json=body)
    assert (response.status_code, response.json()["error_type"]) == (422, "validation")


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_the_slots_of_all_its_prompts(demo, client, stream):
    long = {"prompt": PROMPTS, "max_tokens": 900, "stream": stream}
    body = json.dumps(long).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", demo.port)) as s:
            s.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            if stream:
                assert s.recv(100)
    # four slots: had twelve abandoned prompts stayed, this one would wait for thousands of tokens
    post(client, "/v1/completions", {"prompt": "x", "max_tokens": 2})
    for _ in range(2000):
        if running(client) == 0:
            return
    pytest.fail("slots stay occupied after all clients have left")


# -- platforms -----------------------------------------------------------------------------------------------


def test_sagemaker_gets_the_answer_of_the_route_that_its_body_is_for(client):
    generate = {"inputs": PROMPTS[0], "parameters": {"max_new_tokens": 8}}
    for path, body in (
        ("/", generate),
        ("/v1/chat/completions", CHAT),
        ("/v1/completions", {**COMPLETION, "prompt": PROMPTS[0]}),
    ):
        direct, around = post(client, path, body).json(), post(client, "/invocations", body).json()
        if isinstance(direct, dict):
            direct.pop("created")
            around.pop("created")
        assert around == direct
    chunks = events(client, "/invocations", CHAT)
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert client.post("/invocations", json={"foo": 1}).status_code == 422
    assert client.get("/ping").status_code == 200


def test_vertex_gets_one_prediction_per_instance_in_order(client):
    inputs = {"inputs": PROMPTS[0], "parameters": {"max_new_tokens": 8, "seed": 3}}
    body = {"instances": [inputs, CHAT, inputs]}
    response = post(client, "/vertex", body)
    first, chat, second = response.json()["predictions"]
    assert first == second  # one seed
    assert chat == post(client, "/v1/chat/completions", CHAT).json()["choices"][0]["message"]["content"]
    assert not [name for name in response.headers if name.startswith("x-")]
    response = client.post("/vertex", json={"instances": [{"inputs": ""}]})
    assert (response.status_code, response.json()["error"]) == (500, "Incomplete generation")


def test_vertex_finds_the_paths_that_it_named(launch):
    env = {"AIP_PREDICT_ROUTE": "/predict", "AIP_HEALTH_ROUTE": "/alive"}
    server = launch("--api-key", "Secret", env=env).wait_ready()
    with server.client() as client:
        assert client.get("/alive").status_code == 200
        body = {"instances": [{"inputs": "x", "parameters": {"max_new_tokens": 1}}]}
        assert len(post(client, "/predict", body).json()["predictions"]) == 1
        check_the_key(client)


def check_the_key(client) -> None:
    """What generates needs the key, what only tells does not."""
    completion = {**COMPLETION, "prompt": "x"}
    for path, body in (
        ("/generate", {"inputs": "x"}),
        ("/v1/chat/completions", CHAT),
        ("/v1/completions", completion),
        ("/tokenize", {"inputs": "x"}),
        ("/invocations", completion),
        ("/vertex", {"instances": []}),
    ):
        for headers in ({}, {"authorization": "Bearer wrong"}):
            response = client.post(path, json=body, headers=headers)
            assert (response.status_code, response.content) == (401, b"")
    assert client.post("/v1/completions", json=completion, headers=KEY).status_code == 200
    assert client.post("/chat_tokenize", json=CHAT).status_code == 200
    for path in OPEN:
        assert client.get(path).status_code == 200
    assert client.options("/v1/completions").headers["access-control-allow-methods"] == "GET,POST"


# -- tokens and the rest -------------------------------------------------------------------------------------


def test_tokens_cover_the_text_byte_by_byte(client):
    text = "naïve 😀 lists"
    tokens = post(client, "/tokenize", {"inputs": text}).json()
    raw = text.encode()
    covered = {n for token in tokens for n in range(token["start"], token["stop"])}
    assert covered == set(range(len(raw)))  # tokens inside a character have all of it
    assert all(token["text"] == raw[token["start"] : token["stop"]].decode() for token in tokens)


def test_head_and_options_and_the_model_list(client):
    for path in (
        "/",
        "/health",
        "/ping",
        "/info",
        "/metrics",
        "/v1/models",
        "/docs",
        "/api-doc/openapi.json",
    ):
        response = client.head(path)
        assert (response.status_code, response.content) == (200, b"")
    response = client.options("/v1/chat/completions")
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["access-control-allow-origin"] == "*"
    model = client.get("/info").json()["model_id"]
    assert client.get("/v1/models").json()["data"][0]["id"] == model
    assert post(client, "/v1/completions", {**COMPLETION, "prompt": "x"}).json()["model"] == model
    response = client.get("/v1/completions")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
