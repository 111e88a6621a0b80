"""``text-generation-server``; what the download itself does is tested with the hub's part."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from neuron_world import entry, neuron_world, plain_model

from launcher.download import PROGRAM
from launcher.exit_codes import exit_code
from launcher.server import command
from neuron_server.errors import ModelError

ROOT = Path(__file__).parents[2]


def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    keep = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        [sys.executable, "-c", "from launcher.server import main; main()", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**keep, **env},
        timeout=60,
    )


def test_the_command_line_that_tgis_launcher_writes_is_taken_with_one_warning():
    made = command(
        [
            *("download-weights", "org/model", "--extension", ".safetensors", "--logger-level", "WARN"),
            *("--json-output", "--merge-lora", "--revision", "v1", "--trust-remote-code"),
        ],
        {},
    )
    assert made.argv == (
        *PROGRAM,
        "org/model",
        "--compiled",
        "--revision=v1",
        "--trust-remote-code",
        "--json-output",
    )
    assert made.env["LOG_LEVEL"] == "WARN"
    (warning,) = made.warnings
    assert warning.startswith("--merge-lora has no effect: ")


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--extension", ".bin"], "--extension"),
        (["--auto-convert"], "--auto-convert"),
        (["--no-auto-convert", "--no-merge-lora"], None),
        ([], None),
    ],
)
def test_what_does_nothing_is_said(flags, named):
    warnings = command(["download-weights", "org/model", *flags], {}).warnings
    assert [w.split()[0] for w in warnings] == ([named] if named else [])


def test_the_token_has_each_of_its_names():
    made = command(["download-weights", "m"], {"HF_API_TOKEN": "t", "API_KEY": "hush"})
    assert made.env["HF_TOKEN"] == "t"
    assert "API_KEY" not in made.env


def test_a_directory_needs_no_revision_and_a_path_to_nothing_is_said(tmp_path):
    (warning,) = command(["download-weights", str(tmp_path), "--revision", "v1"], {}).warnings
    assert "local directory" in warning
    with pytest.raises(ModelError):
        command(["download-weights", "/no/such/directory"], {})


def test_a_directory_is_named_on_the_last_line(tmp_path):
    done = run("download-weights", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["path"] == str(tmp_path)


def test_serve_is_refused_with_what_to_use_instead():
    done = run("serve", "org/model", "--uds-path", "/tmp/x")
    assert done.returncode == 2
    assert "text-generation-launcher" in done.stderr


def test_a_verb_is_needed_and_a_path_to_nothing_has_its_status():
    assert run().returncode == 2
    done = run("download-weights", "/no/such/directory")
    assert done.returncode == 20
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1


def test_with_export_a_plain_model_is_compiled_as_the_launcher_would(tmp_path):
    machine, model = neuron_world(tmp_path), plain_model(tmp_path / "model")
    entries = json.dumps([entry(32), entry(4)])
    flags = ("--export", "--max-batch-size", "4")
    done = run("download-weights", str(model), *flags, **machine.env, FAKE_ENTRIES=entries)
    assert done.returncode == 0, done.stderr
    path = Path(json.loads(done.stdout.splitlines()[-1])["path"])
    assert path.is_relative_to(machine.hub)
    assert json.loads((path / "neuron_config.json").read_text())["batch_size"] == 4
    done = run("download-weights", str(model), "--export", "--max-batch-size", "5", **machine.env)
    assert done.returncode == exit_code("no_cached_config")
