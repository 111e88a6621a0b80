from __future__ import annotations

import os

import pytest
from planning import planned

from launcher.chat_template import tokenizer_config_path
from launcher.parameters import Parameters
from neuron_server.errors import ConfigError


def path_of(value: object) -> str | None:
    return tokenizer_config_path(Parameters.of(tokenizer_config_path=str(value)))


def test_without_the_flag_there_is_none():
    assert tokenizer_config_path(Parameters.of()) is None
    assert path_of("") is None


def test_the_path_is_absolute_and_reaches_the_router(tmp_path, monkeypatch):
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    monkeypatch.chdir(tmp_path)
    plan = planned(tokenizer_config_path="tokenizer_config.json")
    assert plan.router.tokenizer_config_path == str(tmp_path / "tokenizer_config.json")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "cannot be read: No such file"),
        (b"{% for m in messages %}", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "must hold a JSON object"),
    ],
)
def test_what_is_no_tokenizer_config_is_refused_by_flag_and_path(tmp_path, content, why):
    path = tmp_path / "template"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        path_of(path)
    assert caught.value.rule == "tokenizer_config"
    assert str(caught.value).startswith(f"--tokenizer-config-path is {path} (flag), but ")
    assert why in str(caught.value)


def test_a_directory_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="Is a directory"):
        path_of(tmp_path)


def test_it_is_checked_before_a_model_is_fetched(tmp_path):
    with pytest.raises(ConfigError) as caught:
        planned(tokenizer_config_path=os.path.join(tmp_path, "none.json"))
    assert caught.value.rule == "tokenizer_config"
