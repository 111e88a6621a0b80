"""The program that compiles, with a stand-in for optimum-neuron; what it answers and what it leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from neuron_world import NeuronWorld, entry, neuron_world, plain_model

from neuron_server.finished_directory import read_receipt
from neuron_server.models import read_model

ROOT = Path(__file__).parents[1]


@pytest.fixture
def machine(tmp_path: Path) -> NeuronWorld:
    return neuron_world(tmp_path)


def start(machine: NeuronWorld, *arguments: str, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "neuron_server.export_model", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env={"PATH": os.environ["PATH"], **machine.env, **env},
    )  # fmt: skip


def run(machine: NeuronWorld, *arguments: str, **env: str) -> tuple[int, dict[str, Any], str]:
    process = start(machine, *arguments, **env)
    out, err = process.communicate(timeout=100)
    last = json.loads(line) if (line := out.splitlines()[-1] if out else "").startswith("{") else {}
    return process.returncode, last, out + err


def shape(output: Path, *more: str) -> list[str]:
    return ["export", "--output", str(output), "--batch-size", "4", "--sequence-length", "2048",
            "--tensor-parallel-size", "2", "--dtype", "bfloat16", *more]  # fmt: skip


def test_the_entries_are_those_of_the_directory_at_hand(machine, tmp_path):
    model = plain_model(tmp_path / "model")
    env = {"FAKE_ENTRIES": json.dumps([entry(4), entry(1)]), "CUSTOM_CACHE_REPO": "me/cache"}
    status, last, _ = run(machine, "entries", f"--path={model}", "--model-id=org/model", **env)
    assert (status, last["repository"]) == (0, "me/cache")
    assert [e["batch_size"] for e in last["entries"]] == [4, 1]
    assert machine.asked == [{"entries_of": str(model), "task": "text-generation"}]


def test_a_cache_that_cannot_be_asked_is_told_from_one_that_has_nothing(machine, tmp_path):
    model = plain_model(tmp_path / "model")
    status, last, _ = run(machine, "entries", f"--path={model}", FAKE_CACHE="offline")
    assert (status, last["rule"]) == (1, "no_cached_config")
    assert "Network is unreachable" in last["error"]
    status, last, _ = run(machine, "entries", f"--path={model}", FAKE_CACHE="other compiler")
    assert (status, last["entries"]) == (0, [])


def test_a_hub_model_is_compiled_with_the_weights_left_where_they_are(machine, tmp_path):
    model, output = plain_model(tmp_path / "model"), tmp_path / "out"
    more = ("--model-id=org/model", "--revision=abc", "--no-on-device-sampling", "--instance-type=inf2")
    status, last, text = run(machine, *shape(output, f"--path={model}", *more, "--max-context-length=1024"))
    assert (status, last) == (0, {"path": str(output)}), text
    static = read_model(output).static
    assert static is not None
    assert (static.batch_size, static.max_context_length, static.dtype) == (4, 1024, "bfloat16")
    assert (static.checkpoint_id, static.checkpoint_revision, static.on_device_sampling) == (
        "org/model",
        "abc",
        False,
    )
    assert (output / "tokenizer.json").read_text() == (model / "tokenizer.json").read_text()
    assert read_model(output).eos_token_ids == {2, 3}
    assert not (output / "model.safetensors").exists()
    (asked,) = machine.asked
    assert (asked["export_of"], asked["name_or_path"], asked["override"]) == (
        "org/model",
        "org/model",
        "trn1",
    )
    assert asked["work"].startswith(asked["cwd"])
    assert not os.path.exists(asked["cwd"])  # nothing of the compiler is left
    about = read_receipt(output)
    assert about is not None
    assert about["model_id"] == "org/model"


def test_weights_to_link_become_the_checkpoint(machine, tmp_path):
    model, output = plain_model(tmp_path / "model"), tmp_path / "out"
    status, _, text = run(machine, *shape(output, f"--path={model}", f"--weights={model}"))
    assert status == 0, text
    assert (output / "checkpoint").resolve() == model
    assert machine.asked[0]["name_or_path"] == ""  # so that optimum-neuron stores no copy


def test_a_failed_compile_leaves_nothing_and_says_the_compilers_last_lines(machine, tmp_path):
    model, output = plain_model(tmp_path / "model"), tmp_path / "out"
    status, last, text = run(machine, *shape(output, f"--path={model}"), FAKE_EXPORT="fail")
    assert (status, last["rule"]) == (1, "export_failed")
    assert "neuronx-cc failed with 70" in last["error"]
    assert last["error"].endswith("ERROR: the tensorizer gave up")
    assert last["error"].count("chatter") < 20
    assert "Error: " in text
    assert sorted(os.listdir(tmp_path)) == ["asked", "machine", "model"]


def test_a_family_that_optimum_neuron_does_not_have_is_its_own_text(machine, tmp_path):
    model = plain_model(tmp_path / "model", model_type="gpt2")
    status, last, _ = run(machine, *shape(tmp_path / "out", f"--path={model}"))
    assert (status, last["rule"]) == (1, "export_failed")
    assert "Model type gpt2 is not supported" in last["error"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_interrupts_finds_nothing_half_done(machine, tmp_path, number):
    model, hanging = plain_model(tmp_path / "model"), tmp_path / "hanging"
    os.mkfifo(hanging)
    process = start(
        machine, *shape(tmp_path / "out", f"--path={model}"), FAKE_EXPORT="hang", HANGING=str(hanging)
    )
    assert int(hanging.read_text()) == process.pid
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Interrupted" in err
    assert sorted(os.listdir(tmp_path)) == ["asked", "hanging", "machine", "model"]


def test_a_compilation_whose_launcher_is_gone_ends_itself_and_leaves_nothing(machine, tmp_path):
    model, output = plain_model(tmp_path / "model"), tmp_path / "out"
    dead = str(2**22 + 1)  # no process has such a number
    status, _, said = run(machine, *shape(output), f"--path={model}", NEURON_TGI_PARENT_PID=dead)
    assert status == 128 + signal.SIGINT, said
    assert not output.exists()


def test_what_a_killed_one_left_is_not_the_output_and_goes_with_the_next(machine, tmp_path):
    model, output = plain_model(tmp_path / "model"), tmp_path / "out"
    status, _, _ = run(machine, *shape(output, f"--path={model}"), FAKE_EXPORT="killed")
    assert (status, output.exists()) == (-signal.SIGKILL, False)
    status, _, text = run(machine, *shape(output, f"--path={model}"))
    assert status == 0, text
    assert sorted(os.listdir(tmp_path)) == ["asked", "machine", "model", "out"]


def test_an_output_that_is_there_is_refused_before_anything_is_compiled(machine, tmp_path):
    model = plain_model(tmp_path / "model")
    status, last, _ = run(machine, *shape(model, f"--path={model}"))
    assert (status, last["rule"]) == (1, "export_failed")
    assert "not an empty directory" in last["error"]
    assert machine.asked == []


def test_without_optimum_neuron_the_image_is_named(machine, tmp_path):
    model = plain_model(tmp_path / "model")
    for arguments in (("entries", f"--path={model}"), shape(tmp_path / "out", f"--path={model}")):
        status, last, _ = run(machine, *arguments, PYTHONPATH="")
        assert (status, last["rule"]) == (1, "backend_unavailable")
        assert "neuron image" in last["error"]
