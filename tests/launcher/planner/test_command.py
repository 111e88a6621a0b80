"""The verb as users call it: text, JSON, exit status, and errors without a traceback."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from planner import plans

from launcher.command import build
from launcher.exit_codes import LaunchError, exit_code
from launcher.export_command import add_arguments
from launcher.planner.command import main
from neuron_server.errors import ConfigError, ModelError

ROOT = Path(__file__).parents[3]


def planned(capsys, *argv):
    status = main(argv)
    return status, capsys.readouterr().out


def test_the_text_names_the_choice_and_the_lines_to_paste(tmp_path, capsys):
    path = str(plans.directory(tmp_path, plans.LLAMA_8B))
    status, out = planned(capsys, "--model-id", path, "--instance", "inf2.48xlarge")
    assert status == 0
    pasted = " ".join(out.replace("\\\n", "").split())
    assert (
        f"text-generation-server export {path} --output ./llama-3.1-8b-tp8-b32-s4096 --batch-size 32 "
        "--sequence-length 4096 --tensor-parallel-size 8 --dtype bfloat16 --instance-type inf2"
    ) in pasted
    assert (
        "text-generation-launcher --model-id ./llama-3.1-8b-tp8-b32-s4096 --num-shard 8 "
        "--data-parallel-size 3 --max-batch-size 32 --max-total-tokens 4096"
    ) in pasted
    assert "predicted: 1369 tokens/s" in out
    assert "nothing was measured by this project" in " ".join(out.split())


@pytest.mark.parametrize("name", [plans.LLAMA_8B, plans.LLAMA_70B, plans.GPT2, plans.QWEN_7B])
def test_the_text_is_110_columns_wide(name, tmp_path, capsys, monkeypatch):
    plans.directory(tmp_path, name)
    monkeypatch.chdir(tmp_path)
    _, out = planned(capsys, "--model-id", name)
    assert max(map(len, out.splitlines())) <= 110


def test_the_json_has_the_documented_keys(tmp_path, capsys):
    path = str(plans.directory(tmp_path, plans.QWEN_7B))
    status, out = planned(capsys, "--model-id", path, "--json")
    assert status == 0
    whole = json.loads(out)
    assert list(whole) == [
        "schema", "fits", "smallest_instance", "model", "workload", "assumptions", "instances"
    ]  # fmt: skip
    assert whole["schema"] == 1
    assert [i["instance"] for i in whole["instances"]] == [
        "inf2.xlarge", "inf2.8xlarge", "inf2.24xlarge", "inf2.48xlarge"
    ]  # fmt: skip
    largest = whole["instances"][-1]
    assert set(largest) == {
        "instance", "cores", "core_bytes", "host_bytes", "fits", "choice", "candidates", "refused",
        "published",
    }  # fmt: skip
    choice = largest["choice"]
    assert choice["flags"] == (
        "--num-shard 8 --data-parallel-size 3 --max-batch-size 32 --max-total-tokens 4096"
    )
    assert choice["prediction"]["label"] == "predicted"
    assert set(largest["candidates"][0]) == set(choice) - {
        "because",
        "flags",
        "export",
        "export_host_bytes",
        "serve",
    }
    assert [i["choice"]["verdict"] for i in whole["instances"]] == ["tight", "fits", "fits", "fits"]
    assert whole["smallest_instance"] == "inf2.8xlarge"
    docs = (ROOT / "docs" / "planner.md").read_text()
    keys = {*whole, *whole["model"], *whole["workload"], *largest, *choice, *choice["core"], *choice["host"]}
    keys |= {*choice["prediction"], *largest["published"][0]}
    assert sorted(key for key in keys if f"`{key}`" not in docs) == []


def test_what_is_not_predicted_is_null_with_a_reason(tmp_path, capsys):
    path = str(plans.directory(tmp_path, plans.GPT2))
    _, out = planned(capsys, "--model-id", path, "--json", "--instance", "inf2.xlarge")
    choice = json.loads(out)["instances"][0]["choice"]
    assert choice["prediction"] is None
    assert "legacy" in choice["not_predicted_because"]


def test_nothing_that_fits_has_a_status_of_its_own(tmp_path, capsys):
    path = str(plans.directory(tmp_path, plans.LLAMA_70B))
    status, out = planned(capsys, "--model-id", path, "--instance", "inf2.24xlarge")
    assert status == exit_code("memory")
    assert "Nothing fits" in out
    status, out = planned(capsys, "--model-id", path, "--instance", "inf2.24xlarge", "--json")
    assert status == exit_code("memory")
    assert json.loads(out)["fits"] is False


def test_more_slots_than_permits_ask_for_more_permits(tmp_path, capsys):
    path = str(plans.directory(tmp_path, plans.GPT2))
    _, out = planned(capsys, "--model-id", path, "--instance", "inf2.48xlarge", "--json")
    choice = json.loads(out)["instances"][0]["choice"]
    assert choice["replicas"] * choice["batch_size"] == 384
    assert choice["flags"].endswith("--max-concurrent-requests 384")


def test_a_longest_prompt_becomes_the_width_of_the_prefill_graph(tmp_path, capsys):
    path = str(plans.directory(tmp_path, plans.LLAMA_8B))
    argv = ("--model-id", path, "--instance", "inf2.48xlarge", "--max-input-tokens", "2048", "--json")
    choice = json.loads(planned(capsys, *argv)[1])["instances"][0]["choice"]
    assert "--sequence-length 4096 --max-context-length 2048 " in choice["export"]
    assert "--max-input-tokens 2048" in choice["flags"]


def test_a_hub_model_is_exported_at_the_revision_that_was_planned_for(tmp_path, capsys, monkeypatch):
    path = plans.directory(tmp_path, plans.LLAMA_8B)

    async def fetched(_model_id, _revision):
        return str(path)

    monkeypatch.setattr("launcher.planner.command._fetched", fetched)
    argv = ("--model-id", "org/model", "--revision", "abc", "--instance", "inf2.8xlarge", "--json")
    choice = json.loads(planned(capsys, *argv)[1])["instances"][0]["choice"]
    assert choice["export"].startswith(
        "text-generation-server export org/model --revision abc --output ./model-"
    )
    assert "--revision" not in choice["serve"]
    assert choice["export_host_bytes"] is None
    assert choice["host"]["least_bytes"] > 16 * 10**9  # its weights are cut while it loads
    (path / "neuron_config.json").write_text(
        '{"batch_size": 4, "sequence_length": 4096, "tp_degree": 2, "torch_dtype": "bfloat16"}'
    )
    choice = json.loads(planned(capsys, *argv)[1])["instances"][0]["choice"]
    assert choice["serve"].startswith(
        "text-generation-launcher --model-id org/model --revision abc --num-shard 2"
    )


def test_a_name_with_a_blank_is_quoted(tmp_path, capsys):
    path = plans.directory(tmp_path, plans.LLAMA_8B).rename(tmp_path / "a model; rm -rf")
    argv = ("--model-id", str(path), "--instance", "inf2.48xlarge", "--json")
    choice = json.loads(planned(capsys, *argv)[1])["instances"][0]["choice"]
    assert f"export '{path}' --output './a model; rm -rf-tp8" in choice["export"]


@pytest.mark.parametrize("name", ["-x", "a --b", "it's", "née"])
def test_whatever_the_directory_is_called_the_lines_can_be_pasted(name, tmp_path, capsys, monkeypatch):
    plans.directory(tmp_path, plans.LLAMA_8B).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    _, out = planned(capsys, "--model-id", f"./{name}", "--instance", "inf2.48xlarge")
    lines = [line for line in out.replace("\\\n", "").splitlines() if line.startswith("    text-")]
    export, serve = (shlex.split(line) for line in lines)
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    options = parser.parse_args(export[2:])
    assert (export[1], options.model_id) == ("export", f"./{name}")
    given = {}
    build(lambda parameters: given.setdefault("parameters", parameters) and 0)(
        args=serve[1:], standalone_mode=False
    )
    assert given["parameters"].text("model_id") == options.output == f"./{name}-tp8-b32-s4096"
    assert given["parameters"].integer("num_shard") == options.tensor_parallel_size == 8


def test_where_to_compile_is_said_where_it_matters(tmp_path, capsys):
    llama, gpt2 = (str(plans.directory(tmp_path, name)) for name in (plans.LLAMA_8B, plans.GPT2))
    _, out = planned(capsys, "--model-id", llama, "--instance", "inf2.xlarge")
    assert "compile, on a machine with more memory (17.0 GiB beside the compiler's):" in out
    _, out = planned(capsys, "--model-id", llama, "--instance", "inf2.8xlarge")
    assert "  compile:\n" in out
    _, out = planned(capsys, "--model-id", gpt2, "--instance", "inf2.xlarge")
    assert "compile, on an instance with devices, which this generation needs:" in out


def test_nothing_fits_says_only_what_could_help(tmp_path, capsys):
    path = str(plans.directory(tmp_path, plans.LLAMA_70B))
    _, out = planned(capsys, "--model-id", path, "--instance", "inf2.24xlarge")
    assert "Nothing fits: plan for a larger instance.\n" in out
    _, out = planned(capsys, "--model-id", path, "--max-batch-size", "512")
    assert "Nothing fits: give it fewer or shorter slots.\n" in out


def test_the_model_may_be_named_by_the_variable_of_the_launcher(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MODEL_ID", str(plans.directory(tmp_path, plans.GPT2)))
    assert planned(capsys, "--instance", "inf2.xlarge")[0] == 0


@pytest.mark.parametrize(
    "argv", [(), ("--model-id", "x", "--no-such-flag"), ("--model-id", "x", "--num-shard", "0")]
)
def test_a_wrong_command_line_is_a_usage_error(argv, capsys):
    assert main(argv) == exit_code("usage")


def test_help_ends_well(capsys):
    status, out = planned(capsys, "--help")
    assert status == 0
    assert "--max-total-tokens" in out


def test_an_unknown_instance_is_refused_with_the_four_before_the_model_is_looked_for():
    with pytest.raises(ConfigError, match=r"inf2.xlarge, inf2.8xlarge, inf2.24xlarge, inf2.48xlarge"):
        main(("--model-id", "/no/such/model", "--instance", "trn1.2xlarge"))


def test_no_such_directory():
    with pytest.raises(ModelError) as caught:
        main(("--model-id", "/no/such/model"))
    assert caught.value.rule == "model_missing"


def test_a_hub_model_that_cannot_be_fetched_is_an_error_of_the_download(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(LaunchError) as caught:
        main(("--model-id", "no-org/no-model"))
    assert caught.value.rule == "download_failed"


def test_from_the_launchers_own_command_line_an_error_is_one_line_and_its_status(tmp_path):
    """As a process: the verb is reached, and a model that nobody serves ends with its own status."""
    path = plans.directory(tmp_path, plans.LLAMA_8B, model_type="falcon")
    done = subprocess.run(
        [sys.executable, "-c", "from launcher.cli import main; main()", "plan", "--model-id", str(path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PATH": os.environ["PATH"]},
        timeout=60,
    )
    assert done.returncode == exit_code("unsupported_model")
    assert done.stderr.startswith("Error: model type 'falcon' was in no release of optimum-neuron")
    assert done.stderr.count("\n") == 1
