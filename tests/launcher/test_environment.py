from __future__ import annotations

import os

from device import machines

from launcher.device.inventory import inspect
from launcher.environment import child_environment, runtime_environment
from launcher.parameters import Parameters


def test_children_know_their_launcher_and_get_no_secret():
    env = child_environment(Parameters.of(), {"API_KEY": "hush", "NGROK_AUTHTOKEN": "hush", "OTHER": "1"})
    assert env["NEURON_TGI_PARENT_PID"] == str(os.getpid())
    assert env["OTHER"] == "1"
    assert "hush" not in env.values()


def test_the_hub_token_and_cache_are_passed_on():
    assert child_environment(Parameters.of(), {"HF_API_TOKEN": "t", "HF_TOKEN": "u"})["HF_TOKEN"] == "t"
    env = child_environment(Parameters.of(huggingface_hub_cache="/data"), {"HF_HUB_CACHE": "/old"})
    assert (env["HUGGINGFACE_HUB_CACHE"], env["HF_HUB_CACHE"]) == ("/data", "/data")


def test_a_faster_client_that_is_not_installed_is_not_asked_for(monkeypatch):
    env = {"HF_HUB_ENABLE_HF_TRANSFER": "1"}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "HF_HUB_ENABLE_HF_TRANSFER" not in child_environment(Parameters.of(), env)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert child_environment(Parameters.of(), env)["HF_HUB_ENABLE_HF_TRANSFER"] == "1"


def test_what_vertex_sets_reaches_the_programs():
    env = {"AIP_PREDICT_ROUTE": "/predict", "AIP_HEALTH_ROUTE": "/live", "AIP_HTTP_PORT": "8080"}
    assert env.items() <= child_environment(Parameters.of(), env).items()


def test_the_runtime_environment_begins_as_issue_reports_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    lines = runtime_environment().splitlines()
    assert lines[0] == "Runtime environment:"
    assert any(line.startswith("transformers: 4.") for line in lines)
    assert lines[-2:] == ["neuron-ls:", "N/A"]


def test_the_runtime_environment_lists_the_neuron_hardware(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    inventory = inspect(machines.inf2_48xlarge(tmp_path), {"NEURON_RT_VISIBLE_CORES": "8-15"})
    text = runtime_environment(inventory)
    assert "\nNeuron devices: 12 (cores 8-15 of 24)\n" in text
    assert "\nNeuron driver: 2.24.7.0\nInstance type: inf2.48xlarge\n" in text
    assert "\nNeuron devices: 0 (no cores)\nNeuron driver: N/A\n" in runtime_environment()
    wrong = inspect(tmp_path, {"NEURON_RT_VISIBLE_CORES": "15-8"})
    assert "\nNeuron devices: 12 (NEURON_RT_VISIBLE_CORES is '15-8', but" in runtime_environment(wrong)


def test_the_runtime_environment_lists_the_software_of_neuron(tmp_path, monkeypatch):
    monkeypatch.setenv("NEURON_TGI_ROOT", str(machines.inf2_xlarge(tmp_path)))
    machines.package(tmp_path, "vllm-neuron", "0.1.0")
    text = runtime_environment()
    assert "\noptimum-neuron: 0.4.5\nneuronx-cc: 2.21.33363.0\n" in text
    assert "\ntransformers-neuronx: N/A\n" in text
    assert "\nvllm-neuron 0.1.0: a placeholder of PyPI, not AWS's\n" in text
    assert "\nNeuron runtime library: 2.28.23.0\n" in text


def test_neuron_ls_is_shown_where_it_is(tmp_path, monkeypatch):
    tool = tmp_path / "neuron-ls"
    tool.write_text("#!/bin/sh\necho instance-type: inf2.xlarge\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert runtime_environment().endswith("neuron-ls:\n    instance-type: inf2.xlarge")
