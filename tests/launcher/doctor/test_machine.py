from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

import pytest
from device import machines

from launcher.doctor import machine

sys.path.insert(0, str(Path(__file__).parent))
from examined import lines

CACHE = "var/tmp/neuron-compile-cache"


def test_memory_is_told_with_the_limit_of_the_container(tmp_path):
    machines.no_device(tmp_path)
    assert lines(machine.memory, tmp_path) == ["ok    memory: 30.0 GiB available (of 32.0 GiB)"]
    machines.write(tmp_path, "sys/fs/cgroup/memory.max", f"{2**33}\n")
    machines.write(tmp_path, "sys/fs/cgroup/memory.current", f"{2**32 + 2**31}\n")
    (line,) = lines(machine.memory, tmp_path)
    assert line.startswith("warn  memory: 2.0 GiB available (of 32.0 GiB, the container's limit is 8.0 GiB)")


def test_memory_that_is_unknown_is_said_to_be(tmp_path):
    (line,) = lines(machine.memory, tmp_path)
    assert line.startswith("warn  memory: how much is available is unknown")


def test_the_place_of_models_follows_the_flag_and_the_variables(tmp_path):
    for environ, flag, where in (
        ({}, None, "/home/user/.cache/huggingface/hub"),
        ({"XDG_CACHE_HOME": "/x"}, None, "/x/huggingface/hub"),
        ({"HF_HOME": "/hf"}, None, "/hf/hub"),
        ({"HF_HOME": "/hf", "HF_HUB_CACHE": "/cache"}, None, "/cache"),
        ({"HF_HUB_CACHE": "/cache"}, "/flag", "/flag"),
    ):
        (line,) = lines(machine.model_disk, tmp_path, environ, huggingface_hub_cache=flag)
        assert f" free in {where}" in line


def test_a_file_in_the_way_of_models_fails_when_one_must_be_fetched(tmp_path):
    machines.write(tmp_path, "data", "a file")
    for model_id, status in ((None, "warn"), ("gpt2", "FAIL")):
        (line,) = lines(machine.model_disk, tmp_path, huggingface_hub_cache="/data/hub", model_id=model_id)
        assert line.startswith(f"{status}  model disk: /data/hub cannot be made")
        assert line.endswith("is a file -> choose another place with --huggingface-hub-cache")


def test_a_directory_that_cannot_be_written_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    (line,) = lines(machine.model_disk, tmp_path, huggingface_hub_cache="/data")
    assert line.startswith("warn  model disk: /data cannot be written by this user")


def test_little_room_for_models_warns(tmp_path, monkeypatch):
    monkeypatch.setattr("launcher.doctor.machine._DISK_BYTES", 2**80)
    (line,) = lines(machine.model_disk, tmp_path)
    assert line.startswith("warn  model disk: ")
    assert "make room, or choose another place" in line


def test_a_closed_directory_cannot_be_written_and_no_check_breaks_over_it(tmp_path, monkeypatch):
    """What ``stat`` says below a home that is another user's; root, as tests may be, is refused nothing."""
    (tmp_path / "home/user").mkdir(parents=True)
    real = os.stat

    def stat(path, *args, **kwargs):
        if ".cache" in str(path):
            raise PermissionError(13, "Permission denied")
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", stat)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    (line,) = lines(machine.model_disk, tmp_path, model_id="org/model")
    assert "cannot be written by this user" in line
    (line,) = lines(machine.hub, tmp_path, model_id="org/model")
    assert line.startswith("ok    hub: no token")


def test_a_model_path_to_nothing_breaks_no_check_of_the_machine(tmp_path):
    for check in (machine.model_disk, machine.hub):
        (line,) = lines(check, tmp_path, model_id="/no/such/directory")
        assert line.startswith("ok ")


def test_the_compile_cache_matters_only_with_neuron(tmp_path):
    assert lines(machine.compile_cache, machines.no_device(tmp_path)) == []
    assert len(lines(machine.compile_cache, tmp_path, backend="neuron")) == 1


@pytest.mark.parametrize(
    ("environ", "where"),
    [
        ({}, "/var/tmp/neuron-compile-cache"),
        ({"NEURON_COMPILE_CACHE_URL": "/cache"}, "/cache"),
        ({"NEURON_COMPILE_CACHE_URL": "/cache", "NEURON_CC_FLAGS": "-O1 --cache_dir=/flag"}, "/flag"),
        ({"NEURON_CC_FLAGS": "--cache_dir '/two words' -O1"}, "/two words"),
        ({"NEURON_CC_FLAGS": "--cache_dir"}, "/var/tmp/neuron-compile-cache"),
        ({"NEURON_CC_FLAGS": "--cache_dir=/x 'unclosed"}, "/x"),
    ],
)
def test_the_flag_of_the_compiler_beats_the_variable(tmp_path, environ, where):
    (line,) = lines(machine.compile_cache, machines.inf2_xlarge(tmp_path), environ)
    assert f" free in {where} (to be made)" in line


def test_a_cache_in_s3_is_not_tried_and_its_secret_not_shown(tmp_path):
    url = {"NEURON_COMPILE_CACHE_URL": "s3://user:hush@bucket/cache"}
    (line,) = lines(machine.compile_cache, machines.inf2_xlarge(tmp_path), url)
    assert line.startswith("ok    compile cache: s3://***@bucket/cache;")


def test_a_relative_cache_warns(tmp_path):
    (line,) = lines(
        machine.compile_cache, machines.inf2_xlarge(tmp_path), {"NEURON_COMPILE_CACHE_URL": "here"}
    )
    assert line.startswith("warn  compile cache: 'here' is relative")


def test_compilations_that_failed_are_counted(tmp_path):
    root = machines.inf2_xlarge(tmp_path)
    for module, files in {"MODULE_1": ["model.neff"], "MODULE_2": ["model.log"], "MODULE_3": []}.items():
        (root / CACHE / "neuronxcc-2.21.33363.0+82129205" / module).mkdir(parents=True)
        for name in files:
            machines.write(root, f"{CACHE}/neuronxcc-2.21.33363.0+82129205/{module}/{name}", "")
    machines.write(root, f"{CACHE}/neuronxcc-2.21.33363.0+82129205/0_REGISTRY", "")
    machines.write(root, f"{CACHE}/lock", "")
    room, failed = lines(machine.compile_cache, root)
    assert room.endswith("free in /var/tmp/neuron-compile-cache")
    assert failed.startswith(
        "warn  compile cache: 2 of 3 modules in /var/tmp/neuron-compile-cache have no model.neff"
    )
    assert "--retry_failed_compilation" in failed


def test_few_open_files_warn_for_the_requests_that_are_let_in(tmp_path):
    root = machines.no_device(tmp_path)
    machines.limits(root, open_files="1024")
    assert lines(machine.limits, root)[0].startswith("ok    limits: 1024 open files, locked memory unlimited")
    (line,) = lines(machine.limits, root, max_concurrent_requests=512)
    assert line.startswith("warn  limits: 1024 open files for --max-concurrent-requests 512")
    machines.limits(root, open_files="unlimited")
    assert lines(machine.limits, root)[0].startswith("ok    limits: unlimited open files")


def test_limits_that_are_unknown_are_said_to_be(tmp_path):
    assert lines(machine.limits, tmp_path) == [
        "ok    limits: open files unknown, locked memory unknown (bytes), /dev/shm absent"
    ]


def test_a_port_that_is_taken_on_this_machine_fails():
    with socket.create_server(("127.0.0.1", 0)) as server:
        number = server.getsockname()[1]
        (line,) = lines(machine.port, Path("/"), port=number, hostname="127.0.0.1")
    assert line.startswith(f"FAIL  port: --port is {number} (flag), but process {os.getpid()}")
    assert line.endswith("-> stop it, or choose another --port")
    assert lines(machine.port, Path("/"), port=0) == ["ok    port: a free one will be taken"]


def test_an_address_of_another_machine_fails():
    (line,) = lines(machine.port, Path("/"), hostname="192.0.2.1", port=0)
    assert line.startswith("FAIL  port: --hostname is 192.0.2.1, but this machine cannot listen there")


def test_a_hostname_that_is_none_warns_as_the_launcher_does():
    first, second = lines(machine.port, Path("/"), hostname="my-container", port=0)
    assert first.startswith("warn  port: Invalid hostname")
    assert second.startswith("ok")


def test_the_holder_of_a_port_is_looked_up_on_the_fake_machine(tmp_path):
    root = machines.no_device(tmp_path)
    machines.process(root, 9, "nginx", opens=["socket:[777]"])
    row = "  0: 00000000:0BB8 00000000:0000 0A 0:0 0:0 0 0 0 777 1 0 100\n"
    machines.write(root, "proc/net/tcp", f"  sl  local_address rem_address st\n{row}")
    assert lines(machine.port, root) == [
        "FAIL  port: process 9 (nginx) listens on 3000 -> stop it, or choose another --port"
    ]
    assert lines(machine.port, root, port=3001) == ["ok    port: 0.0.0.0:3001 is free"]


def test_no_secret_is_ever_printed(tmp_path):
    environ = {
        "HF_TOKEN": "hf_hush",
        "HUGGING_FACE_HUB_TOKEN": "hf_hush",
        "HF_ENDPOINT": "https://me:hf_hush@mirror",
        "API_KEY": "hf_hush",
        "NEURON_COMPILE_CACHE_URL": "s3://hf_hush@bucket",
    }
    machines.inf2_xlarge(tmp_path)
    said = [
        line
        for check in (machine.hub, machine.compile_cache, machine.model_disk, machine.limits, machine.port)
        for line in lines(check, tmp_path, environ, api_key="hf_hush", ngrok_authtoken="hf_hush")
    ]
    assert "hf_hush" not in json.dumps(said)
    assert "ok    hub: token from HF_TOKEN; HF_ENDPOINT is set" in said


def test_a_token_in_a_file_counts(tmp_path):
    machines.write(tmp_path, "home/user/.cache/huggingface/token", "hf_hush")
    assert lines(machine.hub, tmp_path) == ["ok    hub: token from /home/user/.cache/huggingface/token"]


def test_offline_without_the_model_fails_and_with_it_is_fine(tmp_path):
    offline = {"HF_HUB_OFFLINE": "1"}
    (line,) = lines(machine.hub, tmp_path, offline, model_id="gpt2")
    assert line.startswith("FAIL  hub: HF_HUB_OFFLINE: no network, and gpt2 is not in")
    assert lines(machine.hub, tmp_path, {"HF_HUB_OFFLINE": "0"}, model_id="gpt2")[0].startswith("ok")
    snapshots = "home/user/.cache/huggingface/hub/models--gpt2"
    machines.write(tmp_path, f"{snapshots}/refs/main", "abc123")
    machines.write(tmp_path, f"{snapshots}/snapshots/abc123/config.json", "{}")
    (line,) = lines(machine.hub, tmp_path, offline, model_id="gpt2")
    assert line.endswith("offline by HF_HUB_OFFLINE")
