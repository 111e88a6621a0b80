"""Compiling through optimum-neuron's own code, as far as a compiler: the graphs are kept as modules.

What this shows is upstream's host code and graph source, executed on CPU; no compiler and no device took
part.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hosts.export.release import INSTALLED, configuration
from hosts.nxd import tiny_model, upstream

from neuron_server.backend import DecodeRow, PrefillRow
from neuron_server.backends import load_backend, neuron_load
from neuron_server.backends.export import ExportRequest, export
from neuron_server.compiled_model import StaticFacts, check_compiled_files
from neuron_server.config import GeneratorConfig
from neuron_server.errors import ModelError
from neuron_server.models import read_model


@pytest.fixture(autouse=True)
def _saved() -> Iterator[None]:
    """In place of ``torch.jit.save``: an archive, empty but one."""

    def save(model: object, path: str) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("model/data.pkl", b"")

    upstream.stand_in()
    module = import_module("optimum.neuron.models.inference.backend.pretrained_model")
    # Its proxy of the compiler's cache needs the compiler's packages, not stand-ins.
    cache = mock.patch.object(module, "hub_neuronx_cache", return_value=nullcontext(), create=True)
    with mock.patch.object(torch.jit, "save", save), cache:
        yield


def exported(path: Path, output: Path, work: Path, **options: Any) -> StaticFacts:
    shape = {"batch_size": 4, "sequence_length": 32, "tensor_parallel": 1, "dtype": "float32"}
    asked = {"model_id": "org/model", "revision": "abc", "instance_type": "inf2", **shape, **options}
    output.mkdir()
    export(ExportRequest(path=path, **asked), output, work)
    static = read_model(output).static
    assert static is not None
    return static


def test_what_was_asked_for_is_what_our_reader_reads_back(tmp_path):
    model = configuration(tmp_path / "model")
    static = exported(model, tmp_path / "out", tmp_path)
    assert (static.batch_size, static.sequence_length, static.max_context_length) == (4, 32, 32)
    assert (static.tensor_parallel, static.dtype, static.continuous_batching) == (1, "float32", True)
    assert (static.optimum_version, static.target) == (INSTALLED, "trn1" if INSTALLED == "0.4.5" else None)
    assert (static.checkpoint_id, static.checkpoint_revision) == ("org/model", "abc")
    assert static.on_device_sampling  # upstream's default for a llama
    assert static.unknown == ()
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["model_type"] == "llama"
    assert not (tmp_path / "out/checkpoint").exists()  # weights stay on the hub


@pytest.mark.parametrize("sampling", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_type_and_sampling_are_ours_to_say(tmp_path, sampling, dtype):
    model = configuration(tmp_path / "model", torch_dtype="bfloat16")
    static = exported(model, tmp_path / "out", tmp_path, dtype=dtype, on_device_sampling=sampling)
    assert (static.dtype, static.on_device_sampling) == (dtype, sampling)


def test_shorter_prompts_make_a_narrower_graph(tmp_path):
    static = exported(configuration(tmp_path / "model"), tmp_path / "out", tmp_path, max_context_length=16)
    assert (static.max_context_length, static.sequence_length) == (16, 32)


def test_a_local_model_brings_its_weights_unless_they_are_linked(tmp_path):
    tiny_model.reference().save_pretrained(tmp_path / "model")
    nowhere = {"model_id": None, "revision": None}
    static = exported(tmp_path / "model", tmp_path / "out", tmp_path, **nowhere)
    assert static.checkpoint_id is None
    files = check_compiled_files(tmp_path / "out", static)
    assert [f.name for f in files.weights] == ["tp0_sharded_checkpoint.safetensors"]
    static = exported(tmp_path / "model", tmp_path / "linked", tmp_path, **nowhere, store_weights=False)
    assert not (tmp_path / "linked/checkpoint").exists()
    (tmp_path / "linked/checkpoint").symlink_to(tmp_path / "model")
    assert check_compiled_files(tmp_path / "linked", static).weight_bytes > 0


@pytest.mark.parametrize("linked", [True, False])
def test_what_was_compiled_is_served_and_answers_as_transformers_does(tmp_path, linked, monkeypatch):
    """Linked is how the launcher keeps what it compiled: no copy of the weights, no network."""
    plain, out = tmp_path / "plain", tmp_path / "out"
    tiny_model.reference().save_pretrained(plain)
    exported(plain, out, tmp_path, model_id=None, on_device_sampling=False, store_weights=not linked)
    if linked:
        (out / "checkpoint").symlink_to(plain)
    monkeypatch.setattr(neuron_load, "_loaded", [])
    with upstream.fake_device():
        backend = load_backend(GeneratorConfig(str(out), "", 4, 32, 31, backend="neuron"))
    prompt = [5, 9, 2, 7]
    output = backend.prefill([PrefillRow(2, prompt)])
    np.testing.assert_allclose(output.logits[0], tiny_model.alone(prompt)[-1], atol=1e-4)
    output = backend.decode([DecodeRow(2, 11, 4)])
    np.testing.assert_allclose(output.logits[0], tiny_model.alone([*prompt, 11])[-1], atol=1e-4)


def test_a_family_that_the_release_does_not_have_is_named(tmp_path):
    model = configuration(tmp_path / "model", model_type="gpt2", architectures=["GPT2LMHeadModel"])
    with pytest.raises(ModelError, match="gpt2") as caught:
        exported(model, tmp_path / "out", tmp_path)
    assert caught.value.rule == "export_failed"


def test_what_upstreams_compile_raises_is_explained(tmp_path):
    (tmp_path / "log-neuron-cc.txt").write_text("ERROR: out of memory\n")
    name = "optimum.neuron.models.inference.backend.pretrained_model.get_builder"
    with mock.patch(name, side_effect=RuntimeError("killed")), pytest.raises(ModelError) as caught:
        exported(configuration(tmp_path / "model"), tmp_path / "out", tmp_path)
    assert caught.value.rule == "export_failed"
    assert "killed" in str(caught.value)
    assert "ERROR: out of memory" in str(caught.value)
