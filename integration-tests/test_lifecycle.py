"""Start, trouble and end of the real processes, as a user sees them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from harness import DEMO_MODEL, alive, free_port, wait_gone

BODY = {"inputs": "The list type is", "parameters": {"max_new_tokens": 200, "details": True}}


def stream_events(base_url: str, body: dict, on_event=lambda event: None) -> list[dict]:
    events = []
    with httpx.stream("POST", f"{base_url}/generate_stream", json=body, timeout=120) as response:
        assert response.status_code == 200, response.read()
        for line in response.iter_lines():
            if line.startswith("data: "):
                events.append(json.loads(line[6:]))
                on_event(events[-1])
    return events


@pytest.fixture
def endless_model(tmp_path):
    """The demo model without EOS ids, so that a generation is as long as it was asked to be."""
    path = tmp_path / "endless"
    shutil.copytree(DEMO_MODEL, path)
    for name in ("generation_config.json", "config.json"):
        config = json.loads((path / name).read_text())
        config["eos_token_id"] = None
        (path / name).write_text(json.dumps(config))
    tokenizer_config = json.loads((path / "tokenizer_config.json").read_text())
    tokenizer_config["eos_token"] = None
    (path / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    return path


def test_health_names_the_phase_before_the_model_is_ready(launch):
    server = launch()
    server.wait_for_line(r"Starting Webserver")
    phases = []
    with server.client() as client:
        for _ in range(20_000):
            try:
                response = client.get("/health")
            except httpx.ConnectError:
                continue
            if response.status_code == 200:
                break
            assert response.status_code == 503
            assert response.json()["error_type"] == "healthcheck"
            phases.append(response.json()["phase"])
        assert response.status_code == 200
    assert "loading" in phases


def test_ready_line_shows_an_address_and_a_curl_to_paste(launch):
    server = launch().wait_ready()
    assert "demo model" in server.output
    server.wait_for_line(r"curl .*generate_stream")
    assert f"127.0.0.1:{server.port}" in server.output


def test_sigterm_lets_a_running_stream_finish_and_refuses_new_requests(launch, endless_model):
    server = launch("--model-id", str(endless_model)).wait_ready()
    refused = []

    def on_event(event):
        if event["index"] == 3:
            server.process.send_signal(signal.SIGTERM)
            server.wait_for_line(r"graceful shutdown|[Dd]raining")
            refused.append(httpx.post(f"{server.base_url}/generate", json=BODY))

    body = {"inputs": "a", "parameters": {"max_new_tokens": 300, "details": True}}
    events = stream_events(server.base_url, body, on_event)
    assert events[-1]["details"]["generated_tokens"] == 300
    assert refused[0].status_code == 503
    assert server.wait_exit() == 0


def test_ctrl_c_ends_with_code_0_and_leaves_no_process(launch):
    server = launch().wait_ready()
    children = list(server.children().values())
    assert len(children) == 2
    server.process.send_signal(signal.SIGINT)
    assert server.wait_exit() == 0
    assert wait_gone(children) == []


def test_a_killed_generator_is_restarted_and_its_streams_go_on(launch, endless_model):
    server = launch("--model-id", str(endless_model)).wait_ready()
    body = {
        "inputs": "The list type is",
        "parameters": {
            "max_new_tokens": 120,
            "details": True,
            "do_sample": True,
            "seed": 7,
            "temperature": 0.8,
        },
    }
    undisturbed = stream_events(server.base_url, body)
    killed = []

    def on_event(event):
        if event["index"] == 20 and not killed:
            killed.append(server.children()["serve_generator"])
            os.kill(killed[0], signal.SIGKILL)

    disturbed = stream_events(server.base_url, body, on_event)
    assert [e["token"]["id"] for e in disturbed] == [e["token"]["id"] for e in undisturbed]
    assert disturbed[-1]["generated_text"] == undisturbed[-1]["generated_text"]
    server.wait_for_line(r"Shard 0 crashed")
    assert server.children()["serve_generator"] != killed[0]


def test_a_killed_launcher_leaves_no_orphan_and_no_socket(launch, tmp_path):
    server = launch("--shard-uds-path", str(tmp_path / "shard")).wait_ready()
    children = list(server.children().values())
    assert (tmp_path / "shard-0").exists()
    os.kill(server.process.pid, signal.SIGKILL)
    server.wait_exit()
    assert wait_gone(children) == []
    assert list(tmp_path.iterdir()) == []


def test_a_killed_router_ends_the_service_with_its_own_code(launch):
    server = launch().wait_ready()
    children = server.children()
    os.kill(children["serve_router"], signal.SIGKILL)
    assert server.wait_exit() == 43
    assert "Webserver Crashed" in server.output
    assert not alive(children["serve_generator"])


def test_a_port_in_use_is_named_before_anything_loads(launch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = launch(port=taken.getsockname()[1])
        assert server.wait_exit() not in (0, 1, 2)
    assert f"--port is {server.port}" in server.output
    assert "Starting shard" not in server.output


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--max-input-tokens", "10", "--max-total-tokens", "10"], ["max_input_tokens", "10"]),
        (
            ["--max-batch-prefill-tokens", "5", "--max-input-tokens", "10"],
            ["--max-batch-prefill-tokens", "5", "10"],
        ),
        (["--max-total-tokens", "100000"], ["--max-total-tokens", "100000", "2048"]),
        (["--model-id", "/nowhere/at/all"], ["/nowhere/at/all"]),
        (["--no-such-flag"], ["--no-such-flag"]),
    ],
)
def test_what_cannot_work_is_refused_in_words_before_anything_loads(launch, flags, words):
    server = launch(*flags)
    assert server.wait_exit() != 0
    for word in words:
        assert word in server.output
    assert "Starting shard" not in server.output


def test_corrupt_safetensors_are_named_and_nothing_starts(launch, tmp_path):
    path = tmp_path / "corrupt"
    shutil.copytree(DEMO_MODEL, path)
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    server = launch("--model-id", str(path))
    assert server.wait_exit() not in (0, 1, 2)
    assert "model.safetensors" in server.output
    assert "Starting shard" not in server.output


def test_the_first_release_example_starts_unchanged_and_queues_beyond_its_slots(launch, endless_model):
    config = json.loads((endless_model / "config.json").read_text())
    config["max_position_embeddings"] = 1024
    (endless_model / "config.json").write_text(json.dumps(config))
    server = launch(
        *("--model-id", str(endless_model), "--max-concurrent-requests", "16", "--max-input-length", "512"),
        *(
            "--max-total-tokens",
            "1024",
            "--max-batch-prefill-tokens",
            "8192",
            "--max-batch-total-tokens",
            "16384",
        ),
    ).wait_ready()
    info = httpx.get(f"{server.base_url}/info").json()
    assert (info["max_input_tokens"], info["max_total_tokens"]) == (512, 1024)
    assert info["max_batch_size"] == 16


def test_a_full_queue_answers_429_and_the_others_are_served(launch, endless_model):
    server = launch(
        *("--model-id", str(endless_model), "--max-batch-size", "2", "--max-concurrent-requests", "3"),
    ).wait_ready()
    body = {"inputs": "x", "parameters": {"max_new_tokens": 400}}
    started = []

    def on_event(event):
        started.append(event)

    with ThreadPoolExecutor(3) as pool, httpx.Client(base_url=server.base_url, timeout=120) as client:
        streams = [pool.submit(stream_events, server.base_url, body, on_event) for _ in range(3)]
        while not started:
            assert not any(s.done() for s in streams)
        statuses = []
        while 429 not in statuses and not all(s.done() for s in streams):
            statuses.append(client.post("/generate_stream", json={"inputs": ""}).status_code)
        assert 429 in statuses
        assert all(s.result()[-1]["generated_text"] for s in streams)


def test_two_servers_run_side_by_side_with_default_sockets(launch):
    one, two = launch(), launch(port=free_port())
    one.wait_ready()
    two.wait_ready()
    assert one.stop() == 0
    assert httpx.post(
        f"{two.base_url}/generate", json={"inputs": "a", "parameters": {"max_new_tokens": 2}}
    ).is_success
