"""The router as a process, before any generator is there."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

from neuron_server import serve_router
from neuron_server.config import RouterConfig, to_argv
from neuron_server.errors import ConfigError
from neuron_server.lifeline import ExitCode

DEMO_MODEL = Path(serve_router.__file__).parent / "demo_model"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def router(tmp_path, **settings):
    config = RouterConfig(
        model_id="M",
        tokenizer_path=str(settings.pop("tokenizer_path", DEMO_MODEL)),
        shard_uds_paths=(str(tmp_path / "none.sock"),),
        batch_size=1,
        max_input_tokens=8,
        max_total_tokens=16,
        hostname="127.0.0.1",
        port=settings.pop("port", None) or free_port(),
        **settings,
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "neuron_server.serve_router", *to_argv(config)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    process.url = f"http://127.0.0.1:{config.port}"
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def answer_of(url: str, body: bytes | None = None, *, within_s: float = 30.0) -> tuple[int, bytes]:
    """Status and body; connecting is tried again until the program listens."""
    deadline = time.monotonic() + within_s
    request = urllib.request.Request(url, data=body, headers={"content-type": "application/json"})
    while True:
        try:
            with urllib.request.urlopen(request, timeout=within_s) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def test_it_answers_with_the_phase_before_anything_is_loaded(tmp_path):
    with router(tmp_path) as process:
        status, body = answer_of(process.url + "/health")
        assert status == 503
        assert json.loads(body)["phase"] == "loading"
        status, body = answer_of(process.url + "/generate", b'{"inputs":"Hello"}')
        assert status == 503
        assert json.loads(body)["error_type"] == "unavailable"
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=30)
        assert process.returncode == 0
        assert "starting graceful shutdown" in output


async def test_what_was_loaded_is_never_looked_through_for_garbage_again():
    """A full collection of the router's 350,000 objects would stop every stream for half a second."""
    opened_with = []

    class Generators:
        async def wait_ready(self): ...

    class Service:
        def open(self, tokenizer, template):
            opened_with.append(gc.get_freeze_count())

    listening = asyncio.Event()
    listening.set()
    config = RouterConfig("M", str(DEMO_MODEL), ("none.sock",), 1, 8, 16)
    before, threshold = gc.get_freeze_count(), gc.get_threshold()
    try:
        await serve_router._open(config, Service(), Generators(), listening)
        assert gc.get_threshold()[0] > threshold[0]
    finally:
        gc.unfreeze()
        gc.set_threshold(*threshold)
    assert opened_with[0] > before + 10_000


def test_a_signal_before_the_start_ends_it_even_inside_code_that_catches_everything():
    """Whatever is being imported at that moment may catch an exception, or turn it into another."""
    program = (
        "import os, signal, sys\n"
        "from neuron_server import serve_router\n"
        "signal.signal(signal.SIGTERM, serve_router._stop_before_start)\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "except BaseException:\n"
        "    pass\n"
        "sys.exit(1)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], timeout=30, check=False)
    assert done.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM])
def test_a_signal_during_the_imports_ends_it_well(tmp_path, number):
    with router(tmp_path) as process:
        # The socket is bound before the slow imports: that it connects is the earliest sign of life.
        host, port = process.url.removeprefix("http://").split(":")
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                socket.create_connection((host, int(port))).close()
                break
            except OSError:
                time.sleep(0.005)
        process.send_signal(number)
        process.communicate(timeout=30)
        assert process.returncode == 0


def test_a_taken_port_is_one_clear_sentence_and_its_own_status(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with router(tmp_path, port=port) as process:
            output, _ = process.communicate(timeout=30)
    assert process.returncode == ExitCode.ADDRESS == 6
    assert f"--port {port} is taken on 127.0.0.1" in output
    assert "Traceback" not in output


def test_a_missing_tokenizer_ends_the_program_with_a_sentence(tmp_path):
    with router(tmp_path, tokenizer_path=tmp_path / "nowhere") as process:
        output, _ = process.communicate(timeout=60)
    assert process.returncode == ExitCode.MODEL
    assert "nowhere' is not a directory" in output
    assert "Traceback" not in output


def test_an_address_that_is_not_ours_is_named():
    with pytest.raises(ConfigError, match=r"--hostname '203\.0\.113\.1'"):
        serve_router.listen("203.0.113.1", 0)
    with pytest.raises(ConfigError, match="is no address"):
        serve_router.listen("no.such.host.invalid", 0)
