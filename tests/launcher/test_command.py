from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from launcher.command import build
from launcher.exit_codes import EXIT_CODES
from launcher.flags import FLAGS
from launcher.parameters import Parameters, Source
from neuron_server.errors import ConfigError

ROOT = Path(__file__).parents[2]


def parse(*argv: str, env: dict[str, str] | None = None) -> Parameters:
    """What ``launch`` gets for a command line."""
    got: list[Parameters] = []

    def launch(parameters: Parameters) -> int:
        got.append(parameters)
        return 0

    result = CliRunner().invoke(build(launch), list(argv), env=env, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return got[0]


def usage_error(*argv: str, env: dict[str, str] | None = None) -> str:
    """The message of a command line that does not fit."""
    result = CliRunner().invoke(build(lambda _: 0), list(argv), env=env, catch_exceptions=False)
    assert result.exit_code == 2
    return result.output


def test_the_status_of_launch_is_the_status_of_the_command():
    assert CliRunner().invoke(build(lambda _: 41), []).exit_code == 41


def test_a_flag_beats_its_variable_and_a_variable_the_default():
    env = {"MAX_BATCH_SIZE": "8", "MAX_TOTAL_TOKENS": "256"}
    parameters = parse("--max-batch-size", "4", env=env)
    assert (parameters.integer("max_batch_size"), parameters["max_batch_size"].source) == (4, Source.FLAG)
    assert parameters.integer("max_total_tokens") == 256
    assert parameters["max_total_tokens"].source is Source.ENVIRONMENT
    assert parameters["port"].source is Source.DEFAULT


def test_an_empty_variable_counts_as_unset():
    assert parse(env={"MAX_BATCH_SIZE": ""})["max_batch_size"].source is Source.DEFAULT


@pytest.mark.parametrize(("text", "value"), [("true", True), ("false", False)])
def test_switches_are_true_or_false_in_the_environment(text, value):
    assert parse(env={"JSON_OUTPUT": text}).switch("json_output") is value


def test_short_names():
    parameters = parse("-p", "8080", "-g", "5", "-e")
    assert parameters.counted("port") == 8080
    assert parameters.counted("graceful_termination_timeout") == 5
    assert parameters.switch("env")


def test_version_and_env_have_no_variable():
    parameters = parse(env={"ENV": "production", "VERSION": "1.2"})
    assert not parameters.switch("env")
    assert not parameters.switch("version")


def test_origins_may_be_repeated():
    parameters = parse("--cors-allow-origin", "http://a", "--cors-allow-origin", "http://b")
    assert parameters.texts("cors_allow_origin") == ("http://a", "http://b")
    assert parse(env={"CORS_ALLOW_ORIGIN": "http://a"}).texts("cors_allow_origin") == ("http://a",)


def test_choices_come_as_their_text():
    parameters = parse("--dtype", "bfloat16", "--sharded", "false")
    assert parameters.text("dtype") == "bfloat16"
    assert parameters.text("sharded") == "false"


@pytest.mark.parametrize(
    "argv",
    [
        ("--no-such-flag",),
        ("--max-batch-size", "-1"),
        ("--max-batch-size", "four"),
        ("--port", "65536"),
        ("--dtype", "int8"),
        ("positional",),
        ("--max-batch",),  # no abbreviations
    ],
)
def test_what_does_not_fit_is_a_usage_error(argv):
    assert "Usage" in usage_error(*argv)


def test_a_wrong_variable_is_a_usage_error_that_names_it():
    assert "MAX_BATCH_SIZE" in usage_error(env={"MAX_BATCH_SIZE": "many"})


def test_the_example_of_the_first_release_is_understood():
    example = (
        "--max-concurrent-requests 16 --max-input-length 512 --max-total-tokens 1024 "
        "--max-batch-prefill-tokens 8192 --max-batch-total-tokens 16384"
    )
    parameters = parse(*shlex.split(example))
    assert parameters.integer("max_input_tokens") == 512


def test_the_legacy_flag_beats_the_variable_that_an_image_exports():
    assert parse("--max-input-length", "10", env={"MAX_INPUT_TOKENS": "20"}).integer("max_input_tokens") == 10


def test_both_names_as_flags_is_an_error_before_launch():
    with pytest.raises(ConfigError):
        parse("--max-input-tokens", "10", "--max-input-length", "10")


def test_help_shows_every_flag_every_reason_and_every_exit_status():
    text = CliRunner().invoke(build(lambda _: 0), ["--help"], env={"COLUMNS": "400"}).output
    plain = re.sub(r"\s+", " ", re.sub(r"\x1b\[[0-9;]*m", "", text))
    assert all(flag.option in plain for flag in FLAGS)
    assert all(flag.reason in plain for flag in FLAGS)
    assert all(f"{entry.code}: {entry.meaning}" in plain for entry in EXIT_CODES.values())


def test_the_launcher_imports_nothing_heavy():
    code = "import launcher.cli, sys; print(' '.join(m for m in sys.modules if '.' not in m))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert not {"torch", "transformers", "grpc", "fastapi", "huggingface_hub"} & set(loaded.stdout.split())
