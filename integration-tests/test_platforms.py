"""The server as the platforms start it: by environment, or by an argument of their own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import httpx
import pytest
from harness import DEMO_MODEL, LAUNCHER, Server, free_port

SAGEMAKER = [sys.executable, "-c", "from launcher.sagemaker import main; main()"]
BODY = {"inputs": "A list is", "parameters": {"max_new_tokens": 2}}


@pytest.fixture
def repository(tmp_path):
    """A model where a platform mounts it."""
    path = tmp_path / "repository"
    shutil.copytree(DEMO_MODEL, path)
    return path


@pytest.fixture
def serve():
    """Start a program that serves, by its environment and arguments alone."""
    servers: list[Server] = []

    def start(argv: list[str], port: int, **env: str) -> Server:
        servers.append(Server(argv=argv, port=port, env={"HOSTNAME": "3f2a9c1b7d4e", **env}))
        return servers[-1].wait_ready()

    yield start
    for server in servers:
        server.stop()


def test_sagemaker_starts_it_with_serve_and_asks_ping(serve, repository):
    port = free_port()
    server = serve(
        [*SAGEMAKER, "serve"],
        port,
        HF_MODEL_ID=str(repository),
        SM_NUM_GPUS="1",
        SAGEMAKER_BIND_TO_PORT=str(port),
    )
    assert httpx.get(f"{server.base_url}/ping").status_code == 200
    assert httpx.get(f"{server.base_url}/info").json()["model_id"] == str(repository)
    assert server.stop() == 0


def test_inference_endpoints_mounts_the_model_and_sets_variables_only(serve, repository):
    port = free_port()
    server = serve(
        [str(LAUNCHER)],
        port,
        MODEL_ID=str(repository),
        PORT=str(port),
        MAX_BATCH_SIZE="2",
        MAX_TOTAL_TOKENS="256",
        MAX_INPUT_LENGTH="100",
        JSON_OUTPUT="true",
        HF_TASK="text-generation",
    )
    info = httpx.get(f"{server.base_url}/info").json()
    assert (info["max_batch_size"], info["max_total_tokens"], info["max_input_tokens"]) == (2, 256, 100)
    assert httpx.post(f"{server.base_url}/", json=BODY).json()[0]["generated_text"]
    assert all(json.loads(line) for line in server.lines)


def test_vertex_says_the_port(serve):
    port = free_port()
    server = serve([str(LAUNCHER), "--port", "1"], port, AIP_HTTP_PORT=str(port), AIP_MODE="PREDICTION")
    assert httpx.post(f"{server.base_url}/generate", json=BODY).is_success
    assert "AIP_HTTP_PORT" in server.output


def test_download_weights_fills_the_cache_that_an_offline_server_reads(tmp_path):
    """The verb of TGI's server program; the hub is one on localhost."""
    from backends.fake_hub import COMMIT, Hub, serving

    hub = Hub(
        {"org/model": {path.name: path.read_bytes() for path in DEMO_MODEL.iterdir() if path.is_file()}}
    )
    with serving(hub) as endpoint:
        variables = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin"}
        done = subprocess.run(
            [
                *(sys.executable, "-c", "from launcher.server import main; main()"),
                *("download-weights", "org/model", "--revision", "v1"),
            ],
            capture_output=True,
            text=True,
            env=variables,
            timeout=60,
        )
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["revision"] == COMMIT
    assert (
        tmp_path / "home" / "hub" / "models--org--model" / "snapshots" / COMMIT / "model.safetensors"
    ).exists()
    assert "Download: [1/1]" in done.stdout
