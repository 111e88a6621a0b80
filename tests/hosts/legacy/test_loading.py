"""What the real ``from_pretrained`` raises becomes a sentence with a remedy, and a rule."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hosts.legacy import subject, upstream

from launcher.exit_codes import EXIT_CODES
from neuron_server.backends.neuron_legacy import NeuronLegacyBackend
from neuron_server.errors import ModelError

ROOT = Path(__file__).parents[3]


def refusal(root: Path) -> ModelError:
    upstream.load()
    with pytest.raises(ModelError) as caught:
        NeuronLegacyBackend.load(subject.generator_config(root, 2, 16, 8))
    assert caught.value.rule in EXIT_CODES
    return caught.value


@pytest.mark.parametrize(
    ("changes", "rule", "remedy"),
    [
        ({"compiler_version": "2.99.1.0+abc"}, "neuron_version", "neuronx-cc 2.99.1.0+abc or later"),
        ({"num_cores": 4}, "neuron_cores", "needs 4 NeuronCores"),
        ({"compiler_type": "neuron-cc"}, "backend_unavailable", "NEURON_STACK=legacy"),
        ({"task": "no-such-task"}, "unsupported_model", "no-such-task"),
    ],
)
def test_what_upstream_raises_is_explained(tmp_path: Path, changes: Any, rule: str, remedy: str) -> None:
    error = refusal(subject.save_compiled("llama", tmp_path, 2, 16, **changes))
    assert error.rule == rule, error
    assert remedy in str(error)


def test_an_unknown_type_of_model_is_told_as_that(tmp_path: Path) -> None:
    root = subject.save_compiled("llama", tmp_path, 2, 16)
    path = root / "config.json"
    path.write_text(path.read_text().replace('"model_type": "llama"', '"model_type": "phi"'))
    error = refusal(root)
    assert error.rule == "unsupported_model", error
    assert "phi" in str(error)


def test_the_installed_release_has_all_that_the_backend_uses() -> None:
    assert subject.drift() == []


def test_the_stand_ins_fill_exactly_the_recorded_gaps() -> None:
    filled, recorded = subject.placeholders()
    assert filled == recorded


def test_without_the_packages_of_aws_the_image_is_named(tmp_path: Path) -> None:
    """In a process of its own, where nothing stands in for transformers-neuronx or the compiler."""
    root = subject.save_compiled("llama", tmp_path, 2, 16)
    program = (
        "from hosts.legacy.subject import generator_config\n"
        "from neuron_server.backends.neuron_legacy import NeuronLegacyBackend\n"
        f"NeuronLegacyBackend.load(generator_config({str(root)!r}, 2, 16, 8))\n"
    )
    paths = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert "neuron_server.errors.ModelError" in done.stderr.splitlines()[-1], done.stderr
    assert "--build-arg NEURON_STACK=legacy" in done.stderr.splitlines()[-1]
