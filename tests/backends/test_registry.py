from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from neuron_server.backends import load_backend
from neuron_server.backends.fake import FakeBackend
from neuron_server.backends.on_device import OnDeviceSampling
from neuron_server.backends.registry import BACKENDS
from neuron_server.backends.simulated import SimulatedBackend
from neuron_server.config import GeneratorConfig
from neuron_server.device_clock import FORM
from neuron_server.errors import ConfigError, ModelError


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "vocab_size": 50}))
    return tmp_path


def config(path: Path, **settings: Any) -> GeneratorConfig:
    values = {"backend": "fake", "batch_size": 2, "max_length": 16, "max_prompt_tokens": 8, **settings}
    return GeneratorConfig(model_path=str(path), uds_path="", **values)


def test_the_fake_backend_takes_its_vocabulary_from_the_model(directory: Path) -> None:
    backend = load_backend(config(directory, prefill_mode="rebuild"))
    assert isinstance(backend, FakeBackend)
    assert (backend.info.vocab_size, backend.info.prefill_mode) == (50, "rebuild")


def test_a_simulated_clock_wraps_any_backend(directory: Path) -> None:
    backend = load_backend(config(directory, simulated_clock="0:1=0"))
    assert isinstance(backend, SimulatedBackend)
    assert backend.info.vocab_size == 50


def test_a_wrong_clock_is_a_configuration_error(directory: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_backend(config(directory, simulated_clock="fast"))
    assert caught.value.rule == "emulation"
    assert "--simulated-clock 'fast'" in str(caught.value)
    assert FORM in str(caught.value)


@pytest.mark.parametrize("clock", [None, "0:1=0"])
def test_sampling_on_the_device_is_emulated_within_the_clock(directory: Path, clock: str | None) -> None:
    backend = load_backend(config(directory, on_device_sampling=True, simulated_clock=clock))
    assert isinstance(backend, SimulatedBackend if clock else OnDeviceSampling)
    assert (backend.info.output, backend.info.max_top_k) == ("tokens", 50)


@pytest.mark.parametrize("name", ["neuron", "neuron_legacy"])
def test_a_compiled_model_says_itself_who_samples(directory: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="it works with cpu and fake") as caught:
        load_backend(config(directory, backend=name, on_device_sampling=True))
    assert caught.value.rule == "emulation"


def test_a_backend_that_is_not_there_is_refused_honestly(directory: Path) -> None:
    with pytest.raises(ModelError) as caught:
        load_backend(config(directory, backend="gpu"))
    assert caught.value.rule == "backend_unavailable"
    assert "gpu" in str(caught.value)
    assert all(available in str(caught.value) for available in BACKENDS)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_missing_model_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError) as caught:
        load_backend(config(tmp_path / "nothing", backend=name))
    assert caught.value.rule == "model_missing"


@pytest.mark.parametrize("name", ["neuron", "neuron_legacy"])
def test_a_neuron_backend_refuses_a_model_that_was_not_compiled(directory: Path, name: str) -> None:
    with pytest.raises(ModelError) as caught:
        load_backend(config(directory, backend=name))
    assert caught.value.rule == "not_a_neuron_model"


def test_the_fake_backend_needs_neither_torch_nor_transformers(directory: Path) -> None:
    program = (
        "import sys; from neuron_server.backends import load_backend;"
        "from neuron_server.config import GeneratorConfig;"
        f"load_backend(GeneratorConfig({str(directory)!r}, '', 2, 16, 8, backend='fake'));"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
