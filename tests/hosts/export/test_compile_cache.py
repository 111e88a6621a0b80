"""The lookup of cached configurations is optimum-neuron's own; a directory stands in for the hub."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hosts.export.release import INSTALLED, LLAMA, MODERN, configuration, prepare
from huggingface_hub.errors import EntryNotFoundError
from transformers import AutoConfig

from launcher.cached_config import Wanted, select
from neuron_server.backends.compile_cache import cached_entries, repository
from neuron_server.compiled_model import static_of
from neuron_server.errors import ModelError

COMPILER = "2.21.33363.0+82129205"


class CacheOfFiles:
    """As much of the hub client as the lookup uses, on a directory."""

    root: Path

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def list_repo_tree(self, repo_id: str, path_in_repo: str = "", recursive: bool = False) -> list[Any]:
        place = self.root / path_in_repo
        if not place.is_dir():
            raise EntryNotFoundError("no such path")
        return [SimpleNamespace(path=str(f.relative_to(self.root))) for f in sorted(place.iterdir())]

    def list_repo_files(self, repo_id: str) -> list[str]:
        return [str(f.relative_to(self.root)) for f in sorted(self.root.rglob("*.json"))]

    def file_exists(self, repo_id: str, name: str) -> bool:
        return name == "config.json"

    def hf_hub_download(self, repo_id: str, path: str, local_dir: str | None = None) -> str:
        return str(self.root / path)


class Unreachable(CacheOfFiles):
    def list_repo_tree(self, *_: Any, **__: Any) -> list[Any]:
        raise ConnectionError("Network is unreachable")

    list_repo_files = file_exists = list_repo_tree  # type: ignore[assignment]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache's directory, empty."""
    prepare()
    CacheOfFiles.root = tmp_path / "cache"
    CacheOfFiles.root.mkdir()
    use(monkeypatch, CacheOfFiles)
    return CacheOfFiles.root


def use(monkeypatch: pytest.MonkeyPatch, api: type) -> None:
    if MODERN:
        hub_cache = import_module("optimum.neuron.cache.hub_cache")
        monkeypatch.setattr(import_module("optimum.neuron.cache.entries.cache_entry"), "HfApi", api)
        if hasattr(hub_cache, "hub_registry_path"):
            hub_cache.hub_registry_path.cache_clear()
    else:
        hub_cache = import_module("optimum.neuron.utils.hub_cache_utils")
    monkeypatch.setattr(hub_cache, "HfApi", api)


def store(cache: Path, name: str, neuron: dict[str, Any], **changes: Any) -> None:
    """An entry as the release writes it after a compile."""
    values = {**LLAMA, **changes, "_name_or_path": "org/base"}
    config = AutoConfig.for_model(**values)
    top = cache / f"neuronxcc-{COMPILER}" / "0_REGISTRY" / INSTALLED
    if not MODERN:
        place = top / "inference" / "llama" / "org" / "base"
        text = json.dumps({**config.to_diff_dict(), "neuron": {**neuron, "model_type": "llama"}})
    else:
        single = import_module("optimum.neuron.cache.entries.single_model").SingleModelCacheEntry
        entry = single("org/base", "text-generation", config)
        entry._neuron_config = neuron
        digest = entry.arch_digest() if hasattr(entry, "arch_digest") else "llama/org/base"
        place, text = top / digest, entry.serialize()
    place.mkdir(parents=True, exist_ok=True)
    (place / f"{name}.json").write_text(text)


def neuron(batch: int, cores: int = 2) -> dict[str, Any]:
    """A configuration in the form of the generation."""
    if not MODERN:
        return {"task": "text-generation", "batch_size": batch, "num_cores": cores, "sequence_length": 2048,
                "auto_cast_type": "bf16", "compiler_type": "neuronx-cc", "compiler_version": COMPILER,
                "checkpoint_id": "org/base", "checkpoint_revision": "abc"}  # fmt: skip
    kind = import_module("optimum.neuron.models.inference.backend.config").NxDNeuronConfig
    made = kind(batch_size=batch, tp_degree=cores, sequence_length=2048, torch_dtype="bfloat16",
                continuous_batching=batch > 1, checkpoint_id="org/base")  # fmt: skip
    values: dict[str, Any] = made.to_dict()
    return values


def looked_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    if INSTALLED == "0.3.0":  # which reads the configuration from the hub, never from a directory
        single = import_module("optimum.neuron.cache.entries.single_model")
        config = AutoConfig.from_pretrained(path)
        monkeypatch.setattr(single, "AutoConfig", SimpleNamespace(from_pretrained=lambda _: config))
    return cached_entries("org/model", path)


def test_a_fine_tune_finds_what_was_compiled_for_its_base(cache, tmp_path, monkeypatch):
    store(cache, "a", neuron(4))
    store(cache, "b", neuron(32))
    store(cache, "c", neuron(1), num_hidden_layers=3)
    # Other ids of special tokens, another name: the same graphs.
    model = configuration(tmp_path / "model", eos_token_id=7, transformers_version="4.0.0")
    found = [static_of(entry, "x") for entry in looked_up(model, monkeypatch)]
    assert sorted(static.batch_size for static in found) == [4, 32]
    assert {static.generation for static in found} == {"nxd" if MODERN else "legacy"}
    assert {static.unknown for static in found} == {()}  # our reader knows every key the release writes
    assert {static.dtype for static in found} == {"bfloat16"}
    # TGI's issues 3248 and 3299, on the real entries.
    assert select(Wanted(batch_size=4), found).chosen.batch_size == 4
    with pytest.raises(ModelError, match="no configuration"):
        select(Wanted(batch_size=8), found)


def test_a_cache_without_the_model_has_nothing(cache, tmp_path, monkeypatch):
    store(cache, "c", neuron(1), num_hidden_layers=3)
    assert looked_up(configuration(tmp_path / "model"), monkeypatch) == []


def test_a_cache_without_this_compiler_has_nothing(cache, tmp_path, monkeypatch):
    (cache / "neuronxcc-1.0+0").mkdir()
    assert looked_up(configuration(tmp_path / "model"), monkeypatch) == []


def test_a_hub_that_cannot_be_reached_is_no_empty_cache(cache, tmp_path, monkeypatch):
    use(monkeypatch, Unreachable)
    with pytest.raises(ModelError, match="Network is unreachable") as caught:
        looked_up(configuration(tmp_path / "model"), monkeypatch)
    assert caught.value.rule == "no_cached_config"


def test_the_repository_is_the_users(cache, monkeypatch):
    monkeypatch.setenv("CUSTOM_CACHE_REPO", "me/cache")
    assert repository() == "me/cache"
