"""Fetching what was compiled for Neuron, against a tiny hub on localhost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from backends.fake_hub import COMMIT, Hub, serving
from backends.test_checkpoint import point_at

from neuron_server.backends.checkpoint import find
from neuron_server.errors import ModelError

TEXT = {"config.json": b'{"model_type": "llama", "vocab_size": 8}', "tokenizer.json": b"{}"}
NXD = {"batch_size": 4, "sequence_length": 128, "tp_degree": 2}
LEGACY = {"batch_size": 4, "sequence_length": 128, "num_cores": 2}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub({"org/base": {**TEXT, "model.safetensors": b"weights", "consolidated.safetensors": b"again"}})
    with serving(hub) as endpoint:
        point_at(endpoint, tmp_path, monkeypatch)
        yield hub


def nxd(**values: object) -> bytes:
    return json.dumps({**NXD, **values}).encode()


def test_graphs_and_the_weights_of_each_core_are_fetched_and_no_pickle(hub):
    shards = {f"checkpoint/weights/tp{rank}_sharded_checkpoint.safetensors": b"w" for rank in range(2)}
    files = {"neuron_config.json": nxd(), "model.pt": b"graphs", "pytorch_model.bin": b"pickle"}
    hub.repositories["org/compiled"] = {**TEXT, **files, **shards, "checkpoint/old.bin": b"pickle"}
    path = find("org/compiled", compiled=True).path
    assert (path / "model.pt").read_bytes() == b"graphs"
    assert all((path / name).is_file() for name in shards)
    assert not [name for name in hub.fetched if name.endswith(".bin")]
    before = hub.fetched.count("model.pt")
    assert find("org/compiled", compiled=True).path == path
    assert hub.fetched.count("model.pt") == before


def test_weights_come_from_the_model_that_it_was_compiled_of(hub):
    config = nxd(checkpoint_id="org/base", checkpoint_revision=COMMIT)
    hub.repositories["org/compiled"] = {**TEXT, "neuron_config.json": config, "model.pt": b"graphs"}
    path = find("org/compiled", compiled=True).path
    assert path.parents[1].name == "models--org--compiled"
    before = hub.fetched.count("model.safetensors")
    base = find("org/base", COMMIT).path
    assert (base / "model.safetensors").read_bytes() == b"weights"
    assert not (base / "consolidated.safetensors").exists()  # the same weights in another layout
    assert hub.fetched.count("model.safetensors") == before > 0


def test_a_local_compiled_model_has_its_weights_fetched_too(hub, tmp_path):
    (tmp_path / "config.json").write_bytes(TEXT["config.json"])
    (tmp_path / "neuron_config.json").write_bytes(nxd(checkpoint_id="org/base"))
    assert find(str(tmp_path), compiled=True).path == tmp_path
    assert "model.safetensors" in hub.fetched


def test_a_legacy_model_has_its_neffs(hub):
    config = json.dumps({"model_type": "gpt2", "vocab_size": 8, "neuron": LEGACY}).encode()
    files = {"compiled/a.neff": b"neff", "checkpoint/pytorch_model.bin/p0": b"split"}
    hub.repositories["org/compiled"] = {**TEXT, "config.json": config, **files}
    path = find("org/compiled", compiled=True).path
    assert (path / "compiled/a.neff").read_bytes() == b"neff"
    assert (path / "checkpoint/pytorch_model.bin/p0").is_file()


def test_the_configuration_alone_is_kilobytes(hub):
    files = {"neuron_config.json": nxd(checkpoint_id="org/base"), "model.pt": b"graphs"}
    hub.repositories["org/compiled"] = {**TEXT, **files}
    path = find("org/compiled", compiled=True, config_only=True).path
    assert (path / "neuron_config.json").is_file()
    assert "model.pt" not in hub.fetched


def test_who_serves_on_the_cpu_wants_plain_weights(hub):
    files = {"neuron_config.json": nxd(), "model.pt": b"graphs"}
    hub.repositories["org/compiled"] = {**TEXT, **files}
    with pytest.raises(ModelError) as caught:
        find("org/compiled")
    assert caught.value.rule == "weights_missing"
    assert "model.pt" not in hub.fetched
