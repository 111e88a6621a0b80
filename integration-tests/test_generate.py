"""The native routes of the whole server: real launcher, real generator, real sockets."""

from __future__ import annotations

import json
import socket
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from conformance import NO_SHARD_RPC

PROMPT = "The list type is"


def generate(server, prompt=PROMPT, **parameters) -> dict:
    body = {"inputs": prompt, "parameters": {"details": True, **parameters}}
    response = httpx.post(f"{server.base_url}/generate", json=body, timeout=60)
    assert response.status_code == 200, response.text
    return response.json()


def token_ids(answer: dict) -> list[int]:
    return [t["id"] for t in answer["details"]["tokens"]]


def test_one_shot_and_stream_make_the_same_tokens(demo):
    answer = generate(demo, max_new_tokens=20)
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 20, "details": True}}
    with httpx.stream("POST", f"{demo.base_url}/generate_stream", json=body, timeout=60) as response:
        events = [json.loads(line[6:]) for line in response.iter_lines() if line]
    assert [e["token"]["id"] for e in events] == token_ids(answer)
    assert events[-1]["generated_text"] == answer["generated_text"]


def test_the_same_seed_gives_the_same_text_alone_and_among_15_neighbours(launch):
    server = launch("--max-batch-size", "16").wait_ready()
    sampled = {"max_new_tokens": 60, "do_sample": True, "temperature": 0.9, "top_p": 0.95, "seed": 42}
    alone = generate(server, **sampled)
    with ThreadPoolExecutor(16) as pool:
        neighbours = [
            pool.submit(
                generate, server, f"Neighbour {i} says", max_new_tokens=40 + i, do_sample=True, seed=i
            )
            for i in range(15)
        ]
        among = pool.submit(generate, server, **sampled).result()
        assert all(neighbour.result() for neighbour in neighbours)
    assert token_ids(among) == token_ids(alone)
    assert among["generated_text"] == alone["generated_text"]
    assert among["details"]["seed"] == alone["details"]["seed"] == 42


def test_a_simulated_device_answers_at_its_speed(launch):
    """30 ms for the prompt and 20 ms for each of nine steps, whatever the real model takes."""
    server = launch("--backend", "fake", "--simulated-clock", "0.03:1=0.02,4=0.02").wait_ready()
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 10}}
    response = httpx.post(f"{server.base_url}/generate", json=body, timeout=60)
    assert int(response.headers["x-generated-tokens"]) in range(1, 11)
    expected_ms = 30 + 20 * (int(response.headers["x-generated-tokens"]) - 1)
    assert int(response.headers["x-inference-time"]) >= expected_ms - 1  # a whole number, cut down


def test_greedy_has_no_seed_and_real_logprobs(demo):
    details = generate(demo, max_new_tokens=8, top_n_tokens=3)["details"]
    assert details["seed"] is None
    for token, top in zip(details["tokens"], details["top_tokens"], strict=True):
        assert token["logprob"] < 0
        assert top[0]["id"] == token["id"]
        assert top[0]["logprob"] == token["logprob"] >= top[1]["logprob"] >= top[2]["logprob"]


@pytest.mark.case(81)
def test_prompt_logprobs_start_with_null(demo):
    prefill = generate(demo, max_new_tokens=1, decoder_input_details=True)["details"]["prefill"]
    assert prefill[0]["logprob"] is None
    assert all(t["logprob"] < 0 for t in prefill[1:])
    assert "".join(t["text"] for t in prefill).endswith("is")


def test_a_stop_string_ends_the_text_and_stays_in_it(demo):
    whole = generate(demo, max_new_tokens=30)["generated_text"]
    stop = whole[len(whole) // 2 : len(whole) // 2 + 3]
    answer = generate(demo, max_new_tokens=30, stop=[stop])
    assert answer["details"]["finish_reason"] == "stop_sequence"
    assert answer["generated_text"] == whole[: whole.index(stop) + len(stop)]


@pytest.mark.case(32)
def test_an_enormous_max_new_tokens_is_accepted_and_ends_within_the_slot(launch, demo):
    server = launch("--max-total-tokens", "1040", "--max-input-tokens", "16").wait_ready()
    answer = generate(server, max_new_tokens=100_000)
    assert answer["details"]["finish_reason"] in ("length", "eos_token")
    assert answer["details"]["generated_tokens"] <= 1040


@pytest.mark.case(177, deviation=NO_SHARD_RPC)
@pytest.mark.case(93)
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slot(demo, stream):
    def abandon() -> None:
        path = "/generate_stream" if stream else "/generate"
        body = json.dumps({"inputs": "x", "parameters": {"max_new_tokens": 900, "do_sample": True}}).encode()
        with socket.create_connection(("127.0.0.1", demo.port)) as s:
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            s.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            if stream:
                s.recv(100)

    for _ in range(8):
        abandon()
    # four slots: had the abandoned requests stayed, this one would wait for thousands of tokens
    assert generate(demo, max_new_tokens=3)["details"]["generated_tokens"] >= 1
    running = "tgi_batch_current_size"
    for _ in range(2000):
        lines = httpx.get(f"{demo.base_url}/metrics").text.splitlines()
        if float(next(line for line in lines if line.startswith(running)).split()[1]) == 0:
            return
    pytest.fail(f"{running} never fell to 0 after the clients had left")


@pytest.mark.case(61)
@pytest.mark.parametrize("path", ["/health", "/info"])
def test_head_has_the_headers_of_get_and_no_body(demo, path):
    def raw(method: str) -> tuple[list[bytes], bytes]:
        with socket.create_connection(("127.0.0.1", demo.port)) as s:
            s.sendall(f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            head, _, body = s.makefile("rb").read().partition(b"\r\n\r\n")
        return [line for line in head.split(b"\r\n") if not line.startswith(b"date:")], body

    head, body = raw("HEAD")
    assert head[0] == b"HTTP/1.1 200 OK"
    assert (head, body) == (raw("GET")[0], b"")


@pytest.mark.case(71)
def test_four_equal_greedy_requests_at_once_say_the_same(demo):
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: generate(demo, max_new_tokens=30), range(4)))
    assert len({answer["generated_text"] for answer in answers}) == 1
    assert answers[0]["generated_text"]


@pytest.mark.case(71)
def test_one_bad_request_does_not_touch_its_neighbours(demo):
    alone = token_ids(generate(demo, max_new_tokens=40))
    with ThreadPoolExecutor(8) as pool:
        good = [pool.submit(generate, demo, max_new_tokens=40) for _ in range(4)]
        bad = [
            pool.submit(
                httpx.post, f"{demo.base_url}/generate", content=content, headers={"content-type": kind}
            )
            for content, kind in [
                (b'{"inputs": 5}', "application/json"),
                (b"{" * 5000, "application/json"),
                (b"\xff\xfe", "application/json"),
                (b"hello", "text/plain"),
            ]
        ]
        assert [r.result().status_code for r in bad] == [422, 400, 400, 415]
        assert all(token_ids(g.result()) == alone for g in good)


def test_a_prompt_that_is_too_long_is_refused_with_both_numbers(demo):
    limit = httpx.get(f"{demo.base_url}/info").json()["max_input_tokens"]
    prompt = "word " * (limit + 50)
    response = httpx.post(
        f"{demo.base_url}/generate", json={"inputs": prompt, "parameters": {"max_new_tokens": 1}}
    )
    assert response.status_code == 422
    assert response.json()["error_type"] == "validation"
    assert str(limit) in response.json()["error"] or "max_new_tokens" in response.json()["error"]


def test_a_huge_body_does_not_stall_the_others(demo):
    huge = {"inputs": "lorem ipsum " * 150_000}
    with ThreadPoolExecutor(2) as pool:
        slow = pool.submit(httpx.post, f"{demo.base_url}/generate", json=huge, timeout=60)
        assert generate(demo, max_new_tokens=5)["details"]["generated_tokens"] >= 1
        assert slow.result().status_code == 422
