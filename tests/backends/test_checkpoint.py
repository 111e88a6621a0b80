"""Finding and fetching models, against a tiny hub on localhost."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from backends.fake_hub import COMMIT, Hub, serving
from huggingface_hub import constants, file_download

from neuron_server import download_weights
from neuron_server.backends.checkpoint import find
from neuron_server.errors import ModelError

CONFIG = {
    "config.json": b'{"model_type": "gpt2", "vocab_size": 8}',
    "tokenizer.json": b"{}",
    "README.md": b"#",
}
INDEX = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
SHARDS = {
    "model.safetensors.index.json": json.dumps(INDEX).encode(),
    "model-1.safetensors": b"1",
    "model-2.safetensors": b"22",
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub({"org/model": {**CONFIG, "model.safetensors": b"weights", "pytorch_model.bin": b"pickle"}})
    with serving(hub) as endpoint:
        point_at(endpoint, tmp_path, monkeypatch)
        yield hub


def point_at(endpoint: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT and HF_HUB_CACHE do when the client is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.delenv("HF_TOKEN", raising=False)


def refused(call: Callable[[], object]) -> ModelError:
    with pytest.raises(ModelError) as caught:
        call()
    return caught.value


def test_a_local_directory_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point_at("http://127.0.0.1:1", tmp_path, monkeypatch)
    found = find(str(tmp_path))
    assert (found.path, found.revision) == (tmp_path, None)


def test_the_config_comes_without_weights_and_the_weights_without_pickles(hub: Hub) -> None:
    found = find("org/model", config_only=True)
    assert sorted(p.name for p in found.path.iterdir()) == ["config.json", "tokenizer.json"]
    assert found.revision == COMMIT
    assert find("org/model") == found
    assert sorted(p.name for p in found.path.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert (found.path / "model.safetensors").read_bytes() == b"weights"
    assert "pytorch_model.bin" not in hub.fetched


def test_what_is_in_the_cache_is_not_fetched_again_even_without_a_hub(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    found = find("org/model")
    hub.fetched.clear()
    assert find("org/model") == found
    assert hub.fetched == []
    assert "Files are already present on the host. Skipping download." in caplog.text
    point_at("http://127.0.0.1:1", tmp_path, monkeypatch)
    assert find("org/model") == found


def test_exactly_the_shards_of_the_index_are_fetched(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    hub.repositories["org/big"] = {**CONFIG, **SHARDS, "consolidated.safetensors": b"the same again"}
    with caplog.at_level(logging.INFO):
        found = find("org/big", "v1")
    names = {p.name for p in found.path.glob("*.safetensors")}
    assert names == {"model-1.safetensors", "model-2.safetensors"}
    lines = [record.getMessage() for record in caplog.records]
    assert "Download file: model-1.safetensors (0.0 MB)" in lines
    assert "Download: [2/2] -- ETA: 0:00:00" in lines
    assert any(re.fullmatch(r"Downloaded .*/model-2\.safetensors in 0:00:\d\d\.", line) for line in lines)


def test_code_is_fetched_only_for_those_who_trust_it(hub: Hub) -> None:
    hub.repositories["org/code"] = {**CONFIG, "modeling.py": b"x = 1", "model.safetensors": b"w"}
    assert not (find("org/code").path / "modeling.py").exists()
    assert (find("org/code", trust_remote_code=True).path / "modeling.py").exists()


def test_an_unknown_model_and_an_unknown_revision_are_named(hub: Hub) -> None:
    error = refused(lambda: find("org/nothing"))
    assert error.rule == "model_missing"
    assert "'org/nothing' is not on the hub" in str(error)
    error = refused(lambda: find("org/model", "v9"))
    assert error.rule == "model_missing"
    assert "'org/model' at revision 'v9'" in str(error)


def test_a_gated_model_says_what_to_do(hub: Hub) -> None:
    hub.failures["org/gated"] = (403, "GatedRepo")
    error = refused(lambda: find("org/gated"))
    assert error.rule == "download_failed"
    assert "gated" in str(error)
    assert "HF_TOKEN" in str(error)


def test_a_failing_hub_is_named_with_its_status(hub: Hub) -> None:
    hub.failures["org/model"] = (500, "")
    error = refused(lambda: find("org/model"))
    assert error.rule == "download_failed"
    assert "500" in str(error)


def test_what_the_hub_says_the_model_is_for_comes_with_it(hub: Hub) -> None:
    assert find("org/model").pipeline_tag is None
    hub.pipeline_tags["org/model"] = "text-generation"
    assert find("org/model").pipeline_tag == "text-generation"
    assert find("org/model", config_only=True).pipeline_tag is None


@pytest.mark.parametrize(
    ("status", "words"), [(403, ["403", "may not read"]), (429, ["429", "too many requests"])]
)
def test_a_refusal_comes_with_its_remedy(hub: Hub, status: int, words: list[str]) -> None:
    hub.failures["org/model"] = (status, "")
    error = refused(lambda: find("org/model"))
    assert error.rule == "download_failed"
    for word in [*words, "HF_TOKEN"]:
        assert word in str(error)


@pytest.mark.parametrize("variable", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"])
def test_the_token_of_the_environment_is_shown_to_the_hub(
    hub: Hub, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "hf_secret")
    hub.token = "hf_secret"
    assert find("org/model").revision == COMMIT
    assert hub.tokens == {"Bearer hf_secret"}


def test_a_token_that_is_not_accepted_is_named(hub: Hub) -> None:
    hub.failures["org/model"] = (401, "")  # no error code: the hub has not looked for the model
    error = refused(lambda: find("org/model"))
    assert error.rule == "download_failed"
    assert "401" in str(error)
    assert "HF_TOKEN" in str(error)


def test_an_unreachable_hub_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point_at("http://127.0.0.1:1", tmp_path, monkeypatch)
    error = refused(lambda: find("org/model"))
    assert error.rule == "download_failed"
    assert "cannot be reached" in str(error)


def test_offline_mode_is_named(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    from huggingface_hub.utils import reset_sessions

    reset_sessions()
    try:
        error = refused(lambda: find("org/model"))
    finally:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        reset_sessions()
    assert error.rule == "download_failed"
    assert "HF_HUB_OFFLINE" in str(error)


def test_a_model_of_pickles_only_is_refused_with_the_reason(hub: Hub) -> None:
    hub.repositories["org/old"] = {**CONFIG, "pytorch_model.bin": b"pickle"}
    error = refused(lambda: find("org/old"))
    assert error.rule == "weights_missing"
    assert "pytorch_model.bin" in str(error)
    assert "convert" in str(error)
    assert "pytorch_model.bin" not in hub.fetched


def test_a_repository_without_a_config_is_refused(hub: Hub) -> None:
    hub.repositories["org/empty"] = {"README.md": b"#"}
    error = refused(lambda: find("org/empty"))
    assert error.rule == "model_missing"
    assert "config.json" in str(error)


def test_a_name_that_is_no_id_is_refused_without_a_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point_at("http://127.0.0.1:1", tmp_path, monkeypatch)
    error = refused(lambda: find("/no/such/directory"))
    assert error.rule == "model_missing"
    assert "neither a directory nor a hub id" in str(error)


@pytest.mark.parametrize("index", [b"{", b"[]", b"{}", b'{"weight_map": {"a": "weights.bin"}}'])
def test_an_index_that_cannot_be_followed_is_refused(hub: Hub, index: bytes) -> None:
    hub.repositories["org/index"] = {**CONFIG, "model.safetensors.index.json": index}
    assert refused(lambda: find("org/index")).rule == "weights_corrupt"


def test_the_program_prints_the_path_and_the_commit_last(
    hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download_weights.logs, "setup", lambda **_: None)
    assert download_weights.main(["org/model", "--config-only"]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["revision"] == COMMIT
    assert sorted(last) == ["path", "pipeline_tag", "revision"]
    assert (Path(last["path"]) / "config.json").is_file()
    assert not (Path(last["path"]) / "model.safetensors").exists()


def test_the_program_fails_with_the_reason_last(
    hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download_weights.logs, "setup", lambda **_: None)
    assert download_weights.main(["org/nothing", "--json-output"]) == 1
    captured = capsys.readouterr()
    assert "org/nothing" in captured.err.splitlines()[-1]
    assert '"path"' not in captured.out
