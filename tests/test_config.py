"""What the launcher writes on a command line, the programs read back equal."""

from __future__ import annotations

import dataclasses
import re

import pytest

from neuron_server.config import GeneratorConfig, RouterConfig, from_argv, secret_env, to_argv

GENERATOR = GeneratorConfig("/models/gpt2", "/run/g-0", 16, 1024, 512)
ROUTER = RouterConfig("gpt2", "/models/gpt2", ("/run/g-0",), 16, 512, 1024)

FULL_GENERATOR = GeneratorConfig(
    model_path="/models/a b",
    uds_path="/run/g-0",
    batch_size=4,
    max_length=128,
    max_prompt_tokens=64,
    backend="fake",
    dtype="bfloat16",
    prefill_mode="rebuild",
    strict=True,
    poison=True,
    on_device_sampling=True,
    simulated_clock="0.05:1=0.01,4=0.012",
    threads=3,
    trust_remote_code=True,
    max_batch_prefill_tokens=8192,
    waiting_served_ratio=1.2,
    max_waiting_tokens=5,
    max_prefill_stall=0.25,
    approximate_top_p=True,
    disable_grammar_support=True,
    otlp_endpoint="http://collector:4317",
    otlp_service_name="tgi",
    json_output=True,
)
FULL_ROUTER = RouterConfig(
    model_id="org/model",
    tokenizer_path="/models/t",
    shard_uds_paths=("/run/g-0", "/run/g 1"),
    batch_size=4,
    max_input_tokens=100,
    max_total_tokens=200,
    hostname="::",
    port=80,
    max_concurrent_requests=16,
    cors_allow_origin=("https://a.example", "https://b.example"),
    api_key="s3cret",
    trust_remote_code=True,
    revision="-odd",
    pipeline_tag="text-generation",
    tokenizer_config_path="/models/t/other.json",
    approximate_top_p=True,
    disable_grammar_support=True,
    otlp_endpoint="http://collector:4317",
    otlp_service_name="tgi",
    graceful_termination_timeout=1.5,
    json_output=True,
)


@pytest.mark.parametrize(
    "config", [GENERATOR, FULL_GENERATOR, ROUTER, FULL_ROUTER], ids=lambda c: type(c).__name__
)
def test_a_config_survives_its_command_line(config, monkeypatch):
    monkeypatch.delenv("NEURON_TGI_API_KEY", raising=False)
    for name, value in secret_env(config).items():
        monkeypatch.setenv(name, value)
    assert from_argv(type(config), to_argv(config), prog="program") == config


@pytest.mark.parametrize("config", [FULL_GENERATOR, FULL_ROUTER], ids=lambda c: type(c).__name__)
def test_the_full_examples_change_every_field_that_has_a_default(config):
    """So that a field added to a config is added to the round trip above."""
    unchanged = {f.name for f in dataclasses.fields(config) if getattr(config, f.name) == f.default}
    plain = {"max_best_of", "max_stop_sequences", "max_top_n_tokens", "max_client_batch_size"}
    assert unchanged <= plain | {"validation_workers", "payload_limit"}


def test_a_secret_is_never_on_the_command_line():
    assert not any("s3cret" in word or "api" in word for word in to_argv(FULL_ROUTER))
    assert secret_env(FULL_ROUTER) == {"NEURON_TGI_API_KEY": "s3cret"}
    assert secret_env(ROUTER) == {}
    assert secret_env(FULL_GENERATOR) == {}


def test_a_secret_cannot_be_given_as_a_flag(capsys):
    with pytest.raises(SystemExit):
        from_argv(RouterConfig, [*to_argv(ROUTER), "--api-key", "x"], prog="program")
    assert "--api-key" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--backend", "cuda"], "--backend.*'cuda'"),
        (["--dtype", "int4"], "--dtype.*'int4'"),
        (["--prefill-mode", "chunked"], "--prefill-mode"),
        (["--batch-size", "four"], "--batch-size.*'four'"),
        (["--max-prefill-stall", "soon"], "--max-prefill-stall.*'soon'"),
        (["--no-such-flag"], "--no-such-flag"),
        (["--max-prompt", "3"], "--max-prompt"),
    ],
)
def test_what_does_not_fit_exits_with_2_and_names_the_flag(change, message, capsys):
    with pytest.raises(SystemExit) as caught:
        from_argv(GeneratorConfig, [*to_argv(GENERATOR), *change], prog="program")
    assert caught.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_missing_field_is_named(capsys):
    with pytest.raises(SystemExit) as caught:
        from_argv(GeneratorConfig, ["--model-path", "m"], prog="program")
    assert caught.value.code == 2
    assert "--uds-path, --batch-size, --max-length, --max-prompt-tokens" in capsys.readouterr().err


def test_help_lists_every_flag(capsys):
    with pytest.raises(SystemExit) as caught:
        from_argv(GeneratorConfig, ["--help"], prog="program")
    assert caught.value.code == 0
    out = capsys.readouterr().out
    for f in dataclasses.fields(GeneratorConfig):
        assert "--" + f.name.replace("_", "-") in out


@pytest.mark.parametrize("path", ["with = sign", "a 'quoted' \"path\"", "grüße", ""])
def test_odd_values_survive(path):
    config = dataclasses.replace(GENERATOR, model_path=path)
    assert from_argv(GeneratorConfig, to_argv(config), prog="program") == config
