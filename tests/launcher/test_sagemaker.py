from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.sagemaker import start
from neuron_server.errors import ConfigError

ROOT = Path(__file__).parents[2]
NOWHERE = Path("/no/such/model")


def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    keep = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        [sys.executable, "-c", "from launcher.sagemaker import main; main()", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**keep, **env},
        timeout=60,
    )


def test_the_variables_of_tgis_images_become_the_launchers():
    made = start(
        ("serve",),
        {
            "HF_MODEL_ID": "org/model",
            "HF_MODEL_REVISION": "v1",
            "HF_MODEL_TRUST_REMOTE_CODE": "true",
            "HF_MODEL_QUANTIZE": "awq",
            "OTHER": "x",
        },
        NOWHERE,
    )
    assert made.arguments == ("--port", "8080")
    assert made.variables == {
        "MODEL_ID": "org/model",
        "REVISION": "v1",
        "TRUST_REMOTE_CODE": "true",
        "QUANTIZE": "awq",
        "GRACEFUL_TERMINATION_TIMEOUT": "25",
    }
    assert made.notes == ()


def test_what_is_empty_or_absent_is_not_set():
    made = start((), {"HF_MODEL_ID": "org/model", "HF_MODEL_REVISION": ""}, NOWHERE)
    assert set(made.variables) == {"MODEL_ID", "GRACEFUL_TERMINATION_TIMEOUT"}


def test_the_drain_fits_sagemakers_30_seconds_unless_asked_otherwise():
    made = start((), {"HF_MODEL_ID": "m", "GRACEFUL_TERMINATION_TIMEOUT": "5"}, NOWHERE)
    assert "GRACEFUL_TERMINATION_TIMEOUT" not in made.variables


def test_gpus_are_not_counted():
    made = start((), {"HF_MODEL_ID": "m", "SM_NUM_GPUS": "4"}, NOWHERE)
    assert "NUM_SHARD" not in made.variables
    assert "SM_NUM_GPUS is 4" in made.notes[0]


def test_an_endpoint_of_several_containers_says_the_port():
    assert start((), {"HF_MODEL_ID": "m", "SAGEMAKER_BIND_TO_PORT": "8081"}, NOWHERE).arguments[1] == "8081"


def test_further_arguments_are_the_launchers_and_serve_alone_is_not():
    made = start(("serve", "--max-batch-size", "8"), {"HF_MODEL_ID": "m"}, NOWHERE)
    assert made.arguments == ("--port", "8080", "--max-batch-size", "8")
    made = start(("--help",), {"HF_MODEL_ID": "m"}, NOWHERE)
    assert made.arguments == ("--port", "8080", "--help")


def test_without_a_model_id_the_model_data_is_served_and_without_either_nothing(tmp_path):
    with pytest.raises(ConfigError, match=r"^HF_MODEL_ID must be set$"):
        start(("serve",), {"HF_MODEL_ID": ""}, tmp_path)
    (tmp_path / "config.json").touch()
    assert start(("serve",), {}, tmp_path).variables["MODEL_ID"] == str(tmp_path)
    assert start(("serve",), {"HF_MODEL_ID": "m"}, tmp_path).variables["MODEL_ID"] == "m"


def test_without_a_model_the_program_ends_with_tgis_words_and_status():
    done = run("serve")
    assert (done.returncode, done.stderr, done.stdout) == (1, "HF_MODEL_ID must be set\n", "")


def test_the_program_becomes_the_launcher(tmp_path):
    done = run("serve", HF_MODEL_ID=str(tmp_path), HF_MODEL_REVISION="v1", SM_NUM_GPUS="1", NUM_SHARD="1")
    assert done.returncode == 20  # an empty directory
    assert "port: 8080," in done.stdout
    assert f"model_id: {tmp_path}," in done.stdout
    assert "revision: v1," in done.stdout
    assert "SM_NUM_GPUS is 1 and has no effect" in done.stderr
