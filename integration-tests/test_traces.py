"""One trace per request, through both programs, to a collector: real processes, real gRPC."""

from __future__ import annotations

import json
import os
import re
import signal
import time

import httpx
import pytest
from collector import QUICK, Collector, tree

ROUTER, GENERATOR = "neuron_server.router", "neuron_server.generator"
RPC = "/neuronx_tgi.v1.Generator/Generate"
WORK = {(GENERATOR, name): {} for name in ("queued", "prefill", "decode")}
SUBMISSION = {(ROUTER, RPC): {(GENERATOR, RPC): WORK}}
GENERATION = {(ROUTER, name): {} for name in ("validate", "queued", "infer")} | SUBMISSION
ALL = ("generate_stream", "validate", "queued", "infer", RPC, RPC, "queued", "prefill", "decode")


@pytest.fixture(scope="module")
def collector():
    with Collector() as collector:
        yield collector


@pytest.fixture(scope="module")
def server(collector):
    from harness import Server

    server = Server("--max-batch-size", "4", "--otlp-endpoint", collector.url, env=QUICK)
    try:
        yield server.wait_ready()
    finally:
        assert server.stop() == 0, server.output


def trace_id(n: int) -> str:
    return f"{0xABCDEF << 32 | n:032x}"


def ask(server, path: str, body: dict, n: int, *, status: int = 200) -> httpx.Response:
    """A request that belongs to trace ``n`` of its caller's."""
    headers = {"traceparent": f"00-{trace_id(n)}-00000000000000aa-01"}
    response = httpx.post(f"{server.base_url}{path}", json=body, headers=headers, timeout=60)
    assert response.status_code == status, response.text
    return response


def inputs(**parameters) -> dict:
    return {"inputs": "The list type is", "parameters": {"max_new_tokens": 8, **parameters}}


def named(spans, name, program=ROUTER):
    return [one for one in spans if (one.program, one.span.name) == (program, name)]


@pytest.mark.parametrize(("n", "name"), [(1, "generate"), (2, "generate_stream")])
def test_a_request_is_one_trace_of_both_programs(server, collector, n, name):
    ask(server, f"/{name}", inputs(), n)
    spans = collector.trace(trace_id(n), f"POST /{name}", name, *ALL)
    assert tree(spans) == {
        (ROUTER, f"POST /{name}"): {(ROUTER, name): {(ROUTER, "generate_stream"): GENERATION}}
    }
    (root,) = named(spans, f"POST /{name}")
    assert root.span.parent_span_id.hex() == "00000000000000aa"
    assert {one.service for one in spans} == {"text-generation-inference.router"}
    (decode,) = named(spans, "decode", GENERATOR)
    (work,) = named(spans, RPC, GENERATOR)
    assert decode.attributes["tokens"] == work.attributes["generated_tokens"] - 1
    assert work.attributes["rpc.grpc.status_code"] == 0


def test_every_span_lies_within_its_parent(server, collector):
    """Two clocks of one machine: the generator's spans may stick out by a little."""
    ask(server, "/generate", inputs(), 3)
    spans = collector.trace(trace_id(3), "POST /generate", "generate", *ALL)
    by_id = {one.span.span_id: one.span for one in spans}
    for one in spans:
        above = by_id.get(one.span.parent_span_id)
        if above is not None:
            slack_ns = 20_000_000
            assert one.span.start_time_unix_nano >= above.start_time_unix_nano - slack_ns
            assert one.span.end_time_unix_nano <= above.end_time_unix_nano + slack_ns


def test_best_of_and_a_refusal(server, collector):
    ask(server, "/generate", inputs(best_of=2, do_sample=True), 4)
    spans = collector.trace(trace_id(4), "POST /generate", "generate_best_of", *ALL, *ALL)
    assert len(named(spans, RPC, GENERATOR)) == 2
    ask(server, "/generate", inputs(temperature=-1.0), 5, status=422)
    spans = collector.trace(trace_id(5), "POST /generate", "generate", "validate")
    assert named(spans, "generate")[0].span.status.message == "`temperature` must be strictly positive"
    assert not named(spans, RPC, GENERATOR)


def test_completions_of_several_prompts_are_several_generations_of_one_trace(server, collector):
    body = {"model": "tgi", "prompt": ["The list", "A tuple", "Any set"], "max_tokens": 4}
    ask(server, "/v1/completions", body, 8)
    spans = collector.trace(trace_id(8), "POST /v1/completions", "completions", *ALL, *ALL, *ALL)
    assert tree(spans) == {
        (ROUTER, "POST /v1/completions"): {
            (ROUTER, "completions"): {
                (ROUTER, name): GENERATION
                for name in ("generate_stream", "generate_stream#2", "generate_stream#3")
            }
        }
    }
    (handler,) = named(spans, "completions")
    assert "parameters" not in handler.attributes
    assert handler.attributes["total_time"].endswith("s")


@pytest.mark.parametrize(("n", "stream"), [(9, False), (10, True)])
def test_a_chat_is_one_trace_with_its_template(server, collector, n, stream):
    messages = [{"role": "user", "content": "Name a type."}]
    ask(server, "/v1/chat/completions", {"messages": messages, "max_tokens": 4, "stream": stream}, n)
    spans = collector.trace(trace_id(n), "POST /v1/chat/completions", "chat_completions", *ALL)
    chat = {(ROUTER, "apply_chat_template"): {}, (ROUTER, "generate_stream"): GENERATION}
    assert tree(spans) == {(ROUTER, "POST /v1/chat/completions"): {(ROUTER, "chat_completions"): chat}}
    (handler,) = named(spans, "chat_completions")
    assert handler.attributes["parameters"].startswith("GenerateParameters {")
    assert handler.attributes["seed"].startswith("Some(")


def test_without_a_traceparent_each_request_is_a_trace_of_its_own(server, collector):
    for _ in range(2):
        assert httpx.post(f"{server.base_url}/generate", json=inputs(), timeout=60).status_code == 200
    deadline = time.monotonic() + 30
    roots: set = set()
    while len(roots) < 2 and time.monotonic() < deadline:
        roots = {
            one.span.trace_id for one in collector.received
            if one.span.name == "POST /generate" and not one.span.parent_span_id
        }  # fmt: skip
        time.sleep(0.02)
    assert len(roots) == 2


def test_a_request_resumed_on_a_new_generator_stays_one_trace(launch, collector):
    """The first generator takes its spans with it; the router's half and the second one's tell the story."""
    server = launch("--max-batch-size", "2", "--backend", "fake", "--simulated-clock", "0.01:1=0.05,2=0.05",
                    "--otlp-endpoint", collector.url, env=QUICK).wait_ready()  # fmt: skip
    headers = {"traceparent": f"00-{trace_id(6)}-00000000000000aa-01"}
    url, body = f"{server.base_url}/generate_stream", inputs(max_new_tokens=30)
    with httpx.stream("POST", url, json=body, headers=headers, timeout=90) as response:
        lines = (line for line in response.iter_lines() if line.startswith("data:"))
        next(lines)
        os.kill(server.children()["serve_generator"], signal.SIGKILL)
        events = [json.loads(line[5:]) for line in lines]
    assert "error" not in events[-1]
    spans = collector.trace(trace_id(6), "POST /generate_stream", RPC, RPC, RPC, "decode")
    lost, resumed = sorted(named(spans, RPC), key=lambda one: one.span.start_time_unix_nano)
    assert lost.span.status.code == 2
    assert "resumed" in resumed.events
    (work,) = named(spans, RPC, GENERATOR)
    assert work.span.parent_span_id == resumed.span.span_id
    assert work.attributes["resumed_tokens"] > 0


def test_a_drain_sends_what_is_left(launch):
    with Collector() as collector:
        server = launch("--otlp-endpoint", collector.url, "--otlp-service-name", "mine",
                        env={"OTEL_BSP_SCHEDULE_DELAY": "600000"}).wait_ready()  # fmt: skip
        ask(server, "/generate", inputs(), 7)
        assert collector.received == []
        assert server.stop() == 0
        spans = collector.trace(trace_id(7), "POST /generate", "generate", *ALL, timeout_s=1.0)
        assert {one.service for one in spans} == {"mine"}


def test_a_collector_that_is_away_hurts_nobody(launch):
    """Nobody listens on port 1: requests are answered, the log is not flooded, and the end is not late."""
    server = launch("--otlp-endpoint", "http://127.0.0.1:1", env=QUICK).wait_ready()
    for n in range(20):
        ask(server, "/generate", inputs(max_new_tokens=2), 100 + n)
    start = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - start < 10
    assert len(re.findall("Failed to export", server.output)) <= 2
    assert "Traceback" not in server.output
