"""Compiling through optimum-neuron 0.0.28's own code; transformers-neuronx is stood in for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hosts.legacy import subject, upstream

from neuron_server.backends.export import ExportRequest, export
from neuron_server.compiled_model import check_compiled_files
from neuron_server.errors import ModelError
from neuron_server.models import read_model


def request(path: Path, **options: Any) -> ExportRequest:
    shape = {"batch_size": 2, "sequence_length": 16, "tensor_parallel": 2, "dtype": "float32"}
    return ExportRequest(path=path, **{"model_id": None, "revision": None, **shape, **options})


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    upstream.load()
    subject.tiny("llama").save_pretrained(tmp_path / "plain")
    return tmp_path / "plain"


def test_without_a_device_upstream_does_not_compile_and_we_say_so(plain, tmp_path):
    with pytest.raises(ModelError, match="only be exported on a neuron platform") as caught:
        export(request(plain), tmp_path / "out", tmp_path)
    assert caught.value.rule == "export_failed"


@pytest.mark.parametrize(("model_id", "stored"), [(None, True), ("org/model", False)])
def test_with_a_device_our_reader_reads_back_what_was_asked_for(plain, tmp_path, model_id, stored):
    from optimum.neuron.backends.hlo.decoder import NeuronHloDecoderModel

    def save(self: object, directory: str) -> None:
        Path(directory).mkdir()
        (Path(directory) / "0.neff").write_bytes(b"NEFF")

    exists = os.path.isdir
    device = mock.patch("os.path.isdir", lambda p: p == "/sys/class/neuron_device/" or exists(p))
    out = tmp_path / "out"
    with device, mock.patch.object(NeuronHloDecoderModel, "save", save):
        export(request(plain, model_id=model_id, revision=model_id and "abc"), out, tmp_path)
    static = read_model(out).static
    assert static is not None
    assert (static.generation, static.batch_size, static.sequence_length) == ("legacy", 2, 16)
    assert (static.cores, static.dtype, static.compiler_version) == (2, "float32", upstream.COMPILER)
    assert (static.checkpoint_id, static.unknown) == (model_id, ())
    assert (out / "checkpoint").is_dir() is stored
    if stored:
        assert check_compiled_files(out, static).weight_bytes > 0


@pytest.mark.parametrize("option", [{"on_device_sampling": True}, {"max_context_length": 8}])
def test_what_the_release_cannot_do_is_refused_by_its_flag(plain, tmp_path, option):
    with pytest.raises(ModelError, match=next(iter(option)).replace("_", "-")):
        export(request(plain, **option), tmp_path / "out", tmp_path)
