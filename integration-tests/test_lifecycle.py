"""Start, trouble and end of the real processes, as a user sees them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from conformance import DRAINS, OWN_EXIT_STATUS, RESTARTED
from harness import DEMO_MODEL, LAUNCHER, Server, alive, free_port, wait_gone

BODY = {"inputs": "The list type is", "parameters": {"max_new_tokens": 200, "details": True}}

#: Starts in a second, where torch takes several: for what does not depend on the answers.
FAKE = ("--backend", "fake")


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


@pytest.mark.case(190, deviation=DRAINS)
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


@pytest.mark.case(189, deviation=RESTARTED)
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
    server = launch("--shard-uds-path", str(tmp_path / "shard"), *FAKE).wait_ready()
    children = list(server.children().values())
    assert (tmp_path / "shard-0").exists()
    os.kill(server.process.pid, signal.SIGKILL)
    server.wait_exit()
    assert wait_gone(children) == []
    assert list(tmp_path.iterdir()) == []


def test_a_killed_router_ends_the_service_with_its_own_code(launch):
    server = launch(*FAKE).wait_ready()
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
    one, two = launch(*FAKE), launch(*FAKE, port=free_port())
    one.wait_ready()
    two.wait_ready()
    assert one.stop() == 0
    assert httpx.post(
        f"{two.base_url}/generate", json={"inputs": "a", "parameters": {"max_new_tokens": 2}}
    ).is_success


@pytest.mark.case(188, deviation=OWN_EXIT_STATUS)
def test_a_generator_that_cannot_start_ends_with_tgis_last_line(launch, tmp_path):
    path = tmp_path / "broken"
    shutil.copytree(DEMO_MODEL, path)
    config = json.loads((path / "config.json").read_text())
    config["hidden_act" if "hidden_act" in config else "activation_function"] = "no-such-function"
    (path / "config.json").write_text(json.dumps(config))
    server = launch("--model-id", str(path))
    assert server.wait_exit() in (26, 40)
    assert "Shard complete standard error output:" in server.output
    assert "Shard 0 failed to start" in server.output
    assert server.lines[-1] == "Error: ShardCannotStart"


@pytest.mark.case(189, deviation=OWN_EXIT_STATUS)
def test_without_restarts_a_killed_generator_ends_the_service_as_in_tgi(launch):
    server = launch("--max-restarts", "0", *FAKE).wait_ready()
    children = server.children()
    os.kill(children["serve_generator"], signal.SIGKILL)
    assert server.wait_exit() == 41
    assert "Shard process was signaled to shutdown with signal 9" in server.output
    assert "Shard 0 crashed" in server.output
    assert "Terminating webserver" in server.output
    assert server.lines[-1] == "Error: ShardFailed"
    assert wait_gone(list(children.values())) == []


@pytest.mark.case(191)
def test_a_request_longer_than_the_grace_is_cut_off_and_the_end_is_orderly(launch, endless_model):
    slow = (*FAKE, "--simulated-clock", "0.01:1=0.5,4=0.5")
    server = launch("--model-id", str(endless_model), "-g", "1", *slow).wait_ready()
    sent = []

    def on_event(event):
        if not sent:
            sent.append(time.monotonic())
            server.process.send_signal(signal.SIGTERM)

    body = {"inputs": "a", "parameters": {"max_new_tokens": 1000}}
    events = stream_events(server.base_url, body, on_event)
    assert "error" in events[-1]
    assert server.wait_exit() == 0
    assert 1 <= time.monotonic() - sent[0] < 20


def test_with_json_output_every_line_is_an_object_in_the_form_of_its_program(tmp_path):
    """Also where a generator is killed and everything is told about it."""
    port = free_port()
    argv = [str(LAUNCHER), "--json-output", "--hostname", "127.0.0.1", "--port", str(port), "--env"]
    with (tmp_path / "stderr").open("wb") as stderr:
        server = Server(argv=argv, port=port, env={"API_KEY": "hush", "LOG_LEVEL": ""}, stderr=stderr)
        try:
            server.wait_for_line(r"Ready: ")
            headers = {"Authorization": "Bearer hush"}
            body = {"inputs": "a", "parameters": {"max_new_tokens": 2}}
            assert httpx.post(f"{server.base_url}/generate", json=body, headers=headers).is_success
            os.kill(server.children()["serve_generator"], signal.SIGKILL)
            server.wait_for_line(r"Shard ready in")
        finally:
            assert server.stop() == 0
    assert "hush" not in server.output
    entries = [json.loads(line) for line in server.lines]
    ours = [e for e in entries if e["target"] == "text_generation_launcher"]
    routers = [e for e in entries if e["target"] != "text_generation_launcher"]
    assert all({"timestamp", "level", "fields", "target"} <= set(e) <= {*e, "span", "spans"} for e in ours)
    assert routers
    assert all({"timestamp", "level", "message", "target"} <= set(e) for e in routers)
    shards = [e for e in ours if e.get("span") == {"rank": 0, "name": "shard-manager"}]
    said = [e["fields"]["message"] for e in shards]
    for words in ("Starting shard", "Shard ready in", "ready: ", "Shard complete standard error output:"):
        assert any(text.startswith(words) for text in said), words
    assert any(e["message"] == "Connected" for e in routers)


@pytest.mark.case(193)
def test_what_a_generator_prints_besides_its_log_is_shown_at_debug_level_only(launch, tmp_path):
    path = tmp_path / "talkative"
    path.mkdir()
    (path / "sitecustomize.py").write_text(
        "import sys\nif any('serve_generator' in a for a in sys.orig_argv): print('a stray line')\n"
    )
    quiet = launch(env={"PYTHONPATH": str(path)}).wait_ready()
    loud = launch(env={"PYTHONPATH": str(path), "LOG_LEVEL": "debug"}, port=free_port()).wait_ready()
    assert quiet.stop() == loud.stop() == 0
    assert "a stray line" not in quiet.output
    assert "DEBUG shard-manager: text_generation_launcher: a stray line rank=0" in loud.output
