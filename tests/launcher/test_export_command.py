"""``text-generation-server export``, with a stand-in for optimum-neuron."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from neuron_world import NeuronWorld, entry, neuron_world, plain_model

from launcher.device.cores import CoreRange
from launcher.device.inventory import Inventory
from launcher.exit_codes import exit_code
from launcher.export_command import form
from launcher.server import parse_export
from neuron_server.errors import ConfigError
from neuron_server.models import ModelFacts, read_model

ROOT = Path(__file__).parents[2]
INF2 = Inventory(devices=1, instance_type="inf2.8xlarge", cores=CoreRange(0, 2))
FACTS = ModelFacts(
    model_type="llama", architecture="LlamaForCausalLM", max_positions=131072, num_layers=32, kv_heads=8,
    head_dim=128, vocab_size=128256, dtype="bfloat16",
)  # fmt: skip


@pytest.fixture
def machine(tmp_path: Path) -> NeuronWorld:
    return neuron_world(tmp_path)


def run(machine: NeuronWorld, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from launcher.server import main; main()", "export", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **machine.env, **env},
        timeout=100,
    )


def refused(*flags: str, facts: ModelFacts = FACTS, machine: Inventory = INF2) -> tuple[str, str]:
    with pytest.raises(ConfigError) as caught:
        form(parse_export(["m", "--output", "o", *flags]), facts, machine)
    return caught.value.rule, str(caught.value)


# -- what will be compiled -----------------------------------------------------------------------------------


def test_on_a_device_there_is_a_default_for_everything():
    static = form(parse_export(["m", "--output", "o"]), FACTS, INF2)
    assert (static.batch_size, static.sequence_length, static.max_context_length) == (1, 4096, 4096)
    assert (static.tensor_parallel, static.dtype) == (2, "bfloat16")
    short = dataclasses.replace(FACTS, max_positions=1024, dtype=None)
    assert form(parse_export(["m", "--output", "o"]), short, INF2).sequence_length == 1024
    assert form(parse_export(["m", "--output", "o"]), short, INF2).dtype == "float32"


def test_num_shard_is_another_name_and_what_is_said_is_taken():
    flags = ["--num-shard", "8", "--batch-size", "32", "--sequence-length", "8192", "--dtype", "float16"]
    static = form(parse_export(["m", "--output", "o", *flags, "--max-context-length", "100"]), FACTS, INF2)
    assert (static.tensor_parallel, static.batch_size, static.sequence_length) == (8, 32, 8192)
    assert (static.dtype, static.max_context_length) == ("float16", 100)


def test_without_a_device_cores_and_instance_must_be_said():
    nothing = Inventory()
    rule, text = refused(machine=nothing)
    assert rule == "argument"
    assert "--tensor-parallel-size is unset" in text
    rule, text = refused("--tensor-parallel-size", "2", machine=nothing)
    assert rule == "no_neuron_device"
    assert "--instance-type is unset" in text
    flags = ["--tensor-parallel-size", "2", "--instance-type", "inf2"]
    assert form(parse_export(["m", "--output", "o", *flags]), FACTS, nothing).tensor_parallel == 2


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--batch-size", "0"], "--batch-size is 0"),
        (["--sequence-length", "1"], "--sequence-length is 1"),
        (["--sequence-length", "200000"], "--sequence-length is 200000, but the model has 131072 positions"),
        (["--tensor-parallel-size", "-1"], "--tensor-parallel-size is -1"),
        (["--max-context-length", "0"], "--max-context-length is 0"),
        (["--max-context-length", "5000"], "--max-context-length is 5000"),
    ],
)
def test_what_cannot_be_is_named(flags, words):
    assert words in refused(*flags)[1]


def test_a_word_for_a_number_is_a_usage_error():
    with pytest.raises(SystemExit) as caught:
        parse_export(["m", "--output", "o", "--batch-size", "four"])
    assert caught.value.code == 2


# -- the whole program ---------------------------------------------------------------------------------------


def test_a_local_model_is_compiled_with_a_line_for_each_step(machine, tmp_path):
    model, output = plain_model(tmp_path / "model"), tmp_path / "out"
    known: dict[str, Any] = entry(4, 2048)
    done = run(
        machine, str(model), "--output", str(output), "--batch-size", "4", "--sequence-length", "2048",
        FAKE_ENTRIES=json.dumps([known]),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    static = read_model(output).static
    assert static is not None
    assert (static.batch_size, static.sequence_length, static.tensor_parallel) == (4, 2048, 2)
    steps = ["The compile cache has the graphs", "Compiling ", "Compiling took", "Saving", "Copied beside it"]
    places = [done.stderr.index(step) for step in steps]
    assert places == sorted(places)
    assert "tokenizer.json" in done.stderr
    assert machine.asked[1]["name_or_path"] == str(model)  # optimum-neuron stores the weights then


def test_a_cache_that_does_not_answer_does_not_stop_it(machine, tmp_path):
    model, output = plain_model(tmp_path / "model"), tmp_path / "out"
    done = run(machine, str(model), "--output", str(output), FAKE_CACHE="offline")
    assert done.returncode == 0, done.stderr
    assert "Network is unreachable" in done.stderr


def test_failures_have_their_status_and_the_compilers_words(machine, tmp_path):
    model, output = plain_model(tmp_path / "model"), tmp_path / "out"
    done = run(machine, str(model), "--output", str(output), FAKE_EXPORT="fail")
    assert done.returncode == exit_code("export_failed")
    assert done.stderr.rstrip().endswith("ERROR: the tensorizer gave up")
    assert not output.exists()
    done = run(machine, str(model), "--output", str(model))
    assert done.returncode == 1
    assert "--output is " in done.stderr
    done = run(machine, "/no/such/directory", "--output", str(output))
    assert done.returncode == exit_code("model_missing")


def test_what_is_compiled_is_not_compiled_again(machine, tmp_path):
    model = plain_model(tmp_path / "model")
    (model / "neuron_config.json").write_text(json.dumps(entry(4)))
    done = run(machine, str(model), "--output", str(tmp_path / "out"))
    assert done.returncode == exit_code("export_failed")
    assert "compiled already" in done.stderr
    assert "org/base" in done.stderr
