from __future__ import annotations

import asyncio
import os
import sys

import pytest
from conformance import OWN_EXIT_STATUS

from launcher.download import Fetched, fetch, is_local
from launcher.exit_codes import LaunchError
from launcher.parameters import Parameters, Value
from launcher.stopping import Stopping
from neuron_server.errors import ModelError

ENV = {"PATH": os.environ["PATH"]}


class Forwarded:
    """What the download said, its result excepted."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.event = asyncio.Event()

    def __call__(self, _name: str, line: bytes) -> None:
        self.lines.append(line)
        self.event.set()


async def run(code: str, forwarded: Forwarded, *, stopping: Stopping | None = None, config_only: bool = False,
              **values: Value) -> Fetched | None:  # fmt: skip
    program = (sys.executable, "-S", "-E", "-u", "-c", code)
    parameters = Parameters.of(**values)
    return await fetch(
        "org/model",
        parameters,
        ENV,
        forwarded,
        stopping or Stopping(),
        config_only=config_only,
        program=program,
    )


@pytest.mark.parametrize("model_id", ["gpt2", "org/model", "Org-1/model_v0.1"])
def test_hub_ids_are_not_local(model_id, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not is_local(model_id)


def test_a_directory_is_local_even_if_it_looks_like_a_hub_id(tmp_path, monkeypatch):
    (tmp_path / "org" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert is_local("org/model")
    assert is_local(str(tmp_path))


@pytest.mark.parametrize(
    "model_id",
    ["./model", "/no/such/directory", "../model", "~/model", "a/b/c", "model/", "a b", "org/..", "a..b"],
)
def test_a_path_to_nothing_is_said_at_once(model_id, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError) as caught:
        is_local(model_id)
    assert caught.value.rule == "model_missing"
    assert f"--model-id is {model_id}" in str(caught.value)


def test_what_is_longer_than_a_path_can_be_is_refused_and_not_printed_whole():
    with pytest.raises(ModelError, match="cannot be looked into") as caught:
        is_local("a" * 10_000)
    assert caught.value.rule == "model_missing"
    assert len(str(caught.value)) < 400


def test_a_file_is_no_model(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ModelError, match="is a file"):
        is_local(str(tmp_path / "model.safetensors"))


async def test_the_last_line_is_the_result_and_the_others_are_forwarded(heard):
    forwarded = Forwarded()
    code = (
        """print("fetching"); print('{"message": "json log"}'); """
        """print('{"path": "/p", "revision": "abc", "pipeline_tag": "text-generation"}')"""
    )
    assert await run(code, forwarded) == Fetched("/p", "abc", "text-generation")
    assert forwarded.lines == [b"fetching\n", b'{"message": "json log"}\n']
    assert "Starting check and download process for org/model" in heard.text
    assert "Successfully downloaded weights for org/model" in heard.text


async def test_the_flags_reach_the_program():
    code = "import json, sys; print(json.dumps({'path': ' '.join(sys.argv[1:]), 'revision': None}))"
    fetched = await run(code, Forwarded(), config_only=True, revision="v1", trust_remote_code=True)
    said = "org/model --json-output --config-only --revision v1 --trust-remote-code"
    assert fetched == Fetched(said, None)
    assert await run(code, Forwarded()) == Fetched("org/model --json-output", None)


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(
            "import sys; print('no network', file=sys.stderr); sys.exit(1)",
            marks=pytest.mark.case(187, deviation=OWN_EXIT_STATUS),
        ),
        "print('no network')",
        "print('no network'); print('{\"path\": 1}')",
        "import sys; print('no network'); print('{\"path\": \"/p\"}'); sys.exit(1)",
    ],
)
async def test_a_failed_download_is_told_with_its_last_words(code, heard):
    with pytest.raises(LaunchError) as caught:
        await run(code, Forwarded())
    assert (caught.value.rule, caught.value.kind) == ("download_failed", "DownloadError")
    (line,) = (line for line in heard.lines if line.startswith("Download encountered an error:"))
    assert "no network" in line


async def test_a_signal_ends_the_download(heard):
    forwarded, stopping = Forwarded(), Stopping()
    fetching = asyncio.create_task(
        run("import time; print('fetching'); time.sleep(60)", forwarded, stopping=stopping)
    )
    await forwarded.event.wait()
    stopping.ask("SIGTERM")
    assert await fetching is None
    assert "Terminating download" in heard.text
