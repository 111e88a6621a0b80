"""What a plan recommends, given to the launcher: on the machine that it is for, nothing of it is refused."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from device import machines
from planner import plans

from launcher import host
from launcher.command import build
from launcher.device.instances import INSTANCES
from launcher.doctor import model
from launcher.doctor.case import Case
from launcher.doctor.finding import Status
from launcher.parameters import Parameters
from launcher.planner.candidates import Candidate, Question
from launcher.planner.question import Settings
from neuron_server.models import read_model


def export(root: Path, name: str, question: Question, choice: Candidate) -> Path:
    """The configuration that the ``export`` of the recipe leaves; no graphs and no weights."""
    shape, config = choice.shape, plans.config(name)
    if question.support.generation == "legacy":
        config["neuron"] = {
            "task": "text-generation", "batch_size": shape.batch_size, "num_cores": choice.tensor_parallel,
            "sequence_length": shape.max_length, "auto_cast_type": "bf16", "compiler_type": "neuronx-cc",
            "compiler_version": "2.15.143.0",
        }  # fmt: skip
    path = root / "compiled"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    if question.support.generation == "nxd":
        neuron = {
            "_serialized_key": "NxDNeuronConfig", "batch_size": shape.batch_size,
            "sequence_length": shape.max_length, "tp_degree": choice.tensor_parallel,
            "max_context_length": question.wish.prefill_width or shape.max_length, "torch_dtype": "bfloat16",
            "continuous_batching": choice.mode.inserts, "on_device_sampling": choice.mode.on_device_sampling,
        }  # fmt: skip
        (path / "neuron_config.json").write_text(json.dumps(neuron))
    return path


def parsed(line: str) -> Parameters:
    given: list[Parameters] = []
    build(lambda parameters: given.append(parameters) or 0)(args=shlex.split(line), standalone_mode=False)
    return given[0]


FITTING = [
    *((name, instance) for name in (plans.LLAMA_8B, plans.GPT2, plans.QWEN_7B) for instance in INSTANCES),
    (plans.LLAMA_70B, "inf2.48xlarge"),
]


@pytest.mark.parametrize("width", [None, 1023])
@pytest.mark.parametrize(("name", "instance"), FITTING)
def test_the_flags_of_the_recipe_start_on_the_instance(name, instance, width, tmp_path):
    report = plans.report(tmp_path, name, Settings((instance,), max_input_tokens=width))
    choice = report.plans[0].choice
    assert choice is not None
    size = INSTANCES[instance]
    machine = machines.machine(
        tmp_path / "machine", devices=size.devices, instance=instance, driver=machines.DRIVER,
        runtime=machines.RUNTIME, packages=machines.PACKAGES, memory=size.host_bytes,
    )  # fmt: skip
    path = export(tmp_path, name, report.question, choice)
    parameters = parsed(f"--model-id {path} {report.recipe(choice).flags}")
    case = Case(parameters, {"HOME": "/home/user"}, machine)
    assert host.inspect(machine, {}).inventory.total_cores == size.cores
    found = [*model.flags(case), *model._plan(case, path, read_model(path), str(path))]
    assert [str(finding) for finding in found if finding.status is not Status.OK] == []
    assert any(str(choice.shape) in finding.found for finding in found)
