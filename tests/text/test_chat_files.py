"""Which of a model's files the chat template is from."""

from __future__ import annotations

import json
import logging

import pytest

from neuron_server.errors import ModelError
from neuron_server.text.chat_files import load

HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def model(tmp_path):
    """Write files into a model's directory; returns the directory."""

    def write(**files):
        for name, content in files.items():
            stem, _, ending = name.rpartition("_")
            text = content if isinstance(content, str) else json.dumps(content)
            (tmp_path / f"{stem}.{ending}").write_text(text, encoding="utf-8")
        return tmp_path

    return write


def config(template, **tokens):
    return {"chat_template": template, **tokens}


def rendered(*args, **kwargs) -> str | None:
    template = load(*args, **kwargs)
    return None if template is None else template.render(HI)


def test_the_files_have_an_order(model):
    directory = model(processor_config_json=config("processor"))
    assert rendered(directory) == "processor"
    model(tokenizer_config_json=config("tokenizer"))
    assert rendered(directory) == "tokenizer"
    model(chat_template_jinja="jinja")
    assert rendered(directory) == "jinja"
    given = directory / "given.json"
    given.write_text(json.dumps(config("given")))
    assert rendered(directory, config_path=given) == "given"
    model(chat_template_json=config("json"))
    assert rendered(directory) == "json"


def test_a_model_may_have_none(model):
    assert load(model()) is None
    assert load(model(tokenizer_config_json={"model_max_length": 5})) is None
    assert load(model(tokenizer_config_json=config(None), processor_config_json=[])) is None


def test_of_several_templates_the_default_counts(model):
    named = [{"name": "tool_use", "template": "tools"}, 5, {"name": "default", "template": "plain"}]
    assert rendered(model(tokenizer_config_json=config(named))) == "plain"
    assert load(model(tokenizer_config_json=config(named[:1]))) is None
    assert load(model(tokenizer_config_json=config([{"name": "default"}]))) is None


@pytest.mark.parametrize("token", ["</s>", {"content": "</s>", "special": True}])
def test_special_tokens_are_texts_or_objects(model, token):
    assert rendered(model(tokenizer_config_json=config("[{{ eos_token }}]", eos_token=token))) == "[</s>]"
    assert rendered(model(tokenizer_config_json=config("[{{ eos_token }}]", eos_token=None))) == "[]"


def test_special_tokens_of_a_given_file_go_before_the_models(model):
    directory = model(tokenizer_config_json=config("", bos_token="<a>", eos_token="</a>"))
    given = directory / "given.json"
    given.write_text(json.dumps(config("{{ bos_token }}{{ eos_token }}", bos_token="<b>")))
    assert rendered(directory, config_path=given) == "<b></a>"


def test_a_given_file_without_a_template_is_told_and_leaves_the_models(model, caplog):
    directory = model(chat_template_jinja="jinja", given_json={})
    with caplog.at_level(logging.WARNING):
        assert rendered(directory, config_path=directory / "given.json") == "jinja"
    assert "--tokenizer-config-path" in caplog.text
    assert "chat_template.jinja" in caplog.text


def test_a_given_file_that_is_not_there_ends_the_program(model):
    with pytest.raises(ModelError, match=r"--tokenizer-config-path .*no\.json' does not exist"):
        load(model(), config_path="/no.json")


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config_json": "{"},
        {"chat_template_json": "[" * 100_000},
        {"tokenizer_config_json": config("{% for %}")},
        {"chat_template_jinja": "{{"},
    ],
)
def test_a_file_that_cannot_be_used_is_named(model, files):
    with pytest.raises(ModelError, match=r"(tokenizer_config|chat_template)\.(json|jinja)'"):
        load(model(**files))


def test_a_template_in_another_encoding_is_named(model):
    directory = model()
    (directory / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(ModelError, match="cannot be read"):
        load(directory)
