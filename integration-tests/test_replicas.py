"""Several replicas behind one router, as a user and as whoever operates them see it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from harness import DEMO_MODEL, Server, alive, wait_gone

from launcher.exit_codes import EXIT_CODES

#: Twice as many as both replicas of the fixture have slots.
CLIENTS = 8


def body(seed: int, new_tokens: int = 150) -> dict:
    sampling = {"do_sample": True, "temperature": 0.9, "seed": seed}
    return {
        "inputs": f"The list type number {seed} is",
        "parameters": {**sampling, "max_new_tokens": new_tokens},
    }


def stream(base_url: str, request: dict, arrived: threading.Event | None = None) -> list[int]:
    """The ids of one stream, which must be without an error event; ``arrived`` is set at its tenth token."""
    ids = []
    with httpx.stream("POST", f"{base_url}/generate_stream", json=request, timeout=120) as response:
        assert response.status_code == 200, response.read()
        for line in response.iter_lines():
            if line.startswith("data: "):
                event = json.loads(line[6:])
                assert "error" not in event, event
                ids.append(event["token"]["id"])
                if arrived is not None and len(ids) == 10:
                    arrived.set()
    return ids


def replicas(server: Server) -> list[dict]:
    return httpx.get(f"{server.base_url}/info", timeout=30).json()["replicas"]


def until(condition, what: str, timeout_s: float = 90.0):
    """The first true value of ``condition()``."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.05)
    return pytest.fail(f"{what} did not happen in {timeout_s} s")


def all_ready(server: Server) -> bool:
    return [one["phase"] for one in replicas(server)] == ["ready"] * 2


def sample(server: Server, name: str) -> float:
    lines = httpx.get(f"{server.base_url}/metrics").text.splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} ")), 0.0)


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Iterator[Server]:
    """Two replicas of two slots, of the demo model without an end."""
    path = tmp_path_factory.mktemp("models") / "endless"
    shutil.copytree(DEMO_MODEL, path)
    for name, key in (
        ("generation_config.json", "eos_token_id"),
        ("config.json", "eos_token_id"),
        ("tokenizer_config.json", "eos_token"),
    ):
        config = json.loads((path / name).read_text())
        (path / name).write_text(json.dumps({**config, key: None}))
    server = Server("--model-id", str(path), "--data-parallel-size", "2", "--max-batch-size", "2")
    try:
        server.wait_ready()
        until(lambda: all_ready(server), "readiness of both")
        yield server
    finally:
        pids = list(server.generators().values())
        code = server.stop()
    assert code == 0, server.output
    assert wait_gone(pids) == []


def test_each_replica_is_a_process_that_takes_its_share(pair):
    assert len(pair.generators()) == 2
    begun = [threading.Event() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(stream, pair.base_url, body(n), begun[n]) for n in range(4)]
        for event in begun:
            assert event.wait(60)
        while_running = replicas(pair)
        assert all(len(answer.result()) == 150 for answer in answers)
    assert [(one["free_slots"], one["queued"]) for one in while_running] == [(0, 0), (0, 0)]
    until(lambda: [one["free_slots"] for one in replicas(pair)] == [2, 2], "the end of all streams")


def test_a_killed_replica_under_load_costs_no_client_a_token(pair):
    before = pair.generators()
    undisturbed = [stream(pair.base_url, body(n)) for n in range(CLIENTS)]
    lost, resubmitted = (sample(pair, f"neuronx_tgi_{n}") for n in ("generator_losses", "resubmissions"))
    begun = [threading.Event() for _ in range(CLIENTS)]
    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = [pool.submit(stream, pair.base_url, body(n), begun[n]) for n in range(CLIENTS)]
        until(lambda: sum(event.is_set() for event in begun) >= 4, "four running streams")
        os.kill(before[1], signal.SIGKILL)
        disturbed = [answer.result() for answer in answers]
    assert disturbed == undisturbed
    assert sample(pair, "neuronx_tgi_generator_losses") == lost + 1
    assert sample(pair, "neuronx_tgi_resubmissions") > resubmitted
    pair.wait_for_line(r"Restarting shard 1 \(1 of --max-restarts 3\)")
    until(lambda: all_ready(pair), "the return of the killed one")
    after = pair.generators()
    assert after[0] == before[0]
    assert after[1] != before[1]


def test_a_replica_that_hangs_gets_no_requests_and_is_replaced(pair):
    before = pair.generators()
    os.kill(before[0], signal.SIGSTOP)
    until(lambda: replicas(pair)[0]["phase"] != "ready", "the router's notice", 10)
    started = time.monotonic()
    for seed in range(3):
        assert len(stream(pair.base_url, body(seed, 20))) == 20
    assert time.monotonic() - started < 9  # none of them waited until it was called lost
    pair.wait_for_line(r"Shard 0 runs, but the router has lost it \(lost\): killing it", 60)
    pair.wait_for_line(r"Restarting shard 0")
    until(lambda: all_ready(pair), "the return of the one that hung")
    assert not alive(before[0])
    assert pair.generators()[1] == before[1]


# -- a machine with NeuronCores, as far as files tell -------------------------------------------------------


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def machine(tmp_path) -> Path:
    """An inf2.24xlarge, 6 devices, with the software of optimum-neuron 0.4.5; without its code."""
    root = tmp_path / "machine"
    write(root / "proc/devices", "Character devices:\n  1 mem\n246 neuron\n")
    for number in range(6):
        write(root / f"dev/neuron{number}", "")
    write(root / "sys/devices/virtual/dmi/id/product_name", "inf2.24xlarge\n")
    write(root / "sys/module/neuron/version", "2.24.7.0\n")
    write(root / "opt/aws/neuron/lib/libnrt.so.2.28.23.0", "")
    for name, version in (("optimum_neuron", "0.4.5"), ("neuronx_cc", "2.21.33363.0")):
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        place = f"usr/local/lib/python3.11/dist-packages/{name}-{version}.dist-info/METADATA"
        write(root / place, metadata)
    return root


@pytest.fixture
def compiled(tmp_path) -> Path:
    """The demo model as if it had been compiled for two cores; its graphs are none."""
    path = tmp_path / "compiled"
    shutil.copytree(DEMO_MODEL, path)
    neuron = {
        "batch_size": 4,
        "max_batch_size": 4,
        "sequence_length": 512,
        "max_context_length": 512,
        "tp_degree": 2,
        "torch_dtype": "bfloat16",
        "continuous_batching": True,
        "target": "trn1",
        "optimum_neuron_version": "0.4.5",
        "neuronxcc_version": "2.21.33363.0",
    }
    write(path / "neuron_config.json", json.dumps(neuron))
    with zipfile.ZipFile(path / "model.pt", "w") as archive:
        archive.writestr("data.pkl", b"no graph")
    return path


def tried(launch, model: Path, *flags: str, root: Path | None, **env: str) -> tuple[int, str]:
    """Exit status and output of a launcher that cannot serve."""
    environment = {"NEURON_TGI_ROOT": "" if root is None else str(root), **env}
    server = launch("--model-id", str(model), "--backend", "neuron", *flags, env=environment)
    return server.wait_exit(), server.output


def test_each_generator_is_started_with_its_own_cores(launch, machine, compiled, tmp_path):
    """They cannot serve here, where optimum-neuron is a name without code, and say so."""
    python = write(
        tmp_path / "neuron/bin/python",
        f'#!/bin/sh\necho "$NEURON_RT_VISIBLE_CORES" >> "{tmp_path}/cores"\nexec python "$@"\n',
    )
    python.chmod(0o755)
    # Its packages are those of the machine that is looked at.
    shutil.copytree(machine / "usr/local/lib", machine / str(tmp_path / "neuron/lib").lstrip("/"))
    env = {
        "NEURON_TGI_GENERATOR_PYTHON": str(python),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "NEURON_RT_VISIBLE_CORES": "4-11",
        "NEURON_RT_NUM_CORES": "8",
    }
    status, output = tried(launch, compiled, "--data-parallel-size", "3", root=machine, **env)
    assert status == EXIT_CODES["model"].code
    assert "optimum-neuron" in output
    assert "ShardCannotStart" in output
    assert sorted((tmp_path / "cores").read_text().split()) == ["4-5", "6-7", "8-9"]
    for row in (r"num_shard +2 +model", r"cores of replica 2 +8-9 +derived", r"backend +neuron +flag"):
        assert re.search(row, output), row


@pytest.mark.parametrize(
    ("flags", "env", "rule", "text"),
    [
        (("--data-parallel-size", "7"), {}, "neuron_cores", "need 14 NeuronCores, but 12 can be used"),
        (
            (),
            {"NEURON_RT_VISIBLE_CORES": "3"},
            "neuron_cores",
            "compiled for 2 NeuronCores, and 1 can be used",
        ),
        (("--num-shard", "4"), {}, "num_shard", "--num-shard is 4 (flag), but the model was compiled for 2"),
        (
            ("--dtype", "float16"),
            {},
            "argument",
            "--dtype is float16 (flag), but the model was compiled for bf",
        ),
        (("--strict",), {}, "emulation", "--strict is true (flag), but emulates a device"),
    ],
)
def test_what_does_not_fit_model_or_machine_is_said_before_anything_starts(
    launch, machine, compiled, flags, env, rule, text
):
    status, output = tried(launch, compiled, *flags, root=machine, **env)
    assert (status, text in output) == (EXIT_CODES[rule].code, True), output
    assert "Starting" not in output


def test_no_device_and_no_software_are_told_apart(launch, machine, compiled):
    status, output = tried(launch, compiled, root=None)
    assert status == EXIT_CODES["no_neuron_device"].code
    assert "no Neuron device can be seen" in output
    shutil.rmtree(machine / "usr")
    status, output = tried(launch, compiled, root=machine)
    assert status == EXIT_CODES["backend_unavailable"].code
    assert "optimum-neuron is not installed here" in output
