"""The whole launcher as a process: statuses and last lines. Serving for real is for the integration tests."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.cli import VERBS
from launcher.exit_codes import exit_code
from launcher.flags import FLAGS

ROOT = Path(__file__).parents[2]
MAIN = (sys.executable, "-c", "from launcher.cli import main; main()")


def run(*argv: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    keep = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        [*MAIN, *argv], capture_output=True, text=True, cwd=ROOT, env={**keep, **(env or {})}, timeout=60
    )


def test_version():
    done = run("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("text-generation-launcher ")


def test_help_without_a_terminal_shows_every_flag_by_its_whole_name():
    done = run("--help")
    assert done.returncode == 0
    words = set(done.stdout.split())
    assert [flag.option for flag in FLAGS if flag.option not in words] == []


def test_help_names_the_verbs():
    text = " ".join(run("--help").stdout.split())
    for verb in VERBS:
        assert f'"text-generation-launcher {verb}"' in text


def test_ctrl_c_while_a_verb_waits_has_its_status_and_no_traceback(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as hub:
        env = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{hub.getsockname()[1]}"}
        env["HF_HOME"] = str(tmp_path)
        argv = (*MAIN, "plan", "--model-id", "org/model")
        with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=env) as child:
            hub.settimeout(60)
            hub.accept()  # the download asks, and is never answered
            child.send_signal(signal.SIGINT)
            _, errors = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "Traceback" not in errors


def test_an_unknown_flag_is_a_usage_error():
    done = run("--no-such-flag")
    assert done.returncode == 2
    assert "--no-such-flag" in done.stderr


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        pytest.param(
            ("--max-input-tokens", "10", "--max-input-length", "10"),
            'Error: ArgumentValidation("Both `max_input_tokens` (10) and `max_input_length` (10) are set. '
            "Please define only `max_input_tokens` as `max_input_length is deprecated for naming "
            'consistency.")',
            marks=pytest.mark.case(183),
        ),
        pytest.param(
            ("--max-input-tokens", "10", "--max-total-tokens", "10"),
            'Error: ArgumentValidation("`max_input_tokens`(10) must be < `max_total_tokens`(10)")',
            marks=pytest.mark.case(184),
        ),
        (("--num-shard", "0"), 'Error: ArgumentValidation("`num_shard` cannot be < 1")'),
    ],
)
def test_tgis_argument_errors_are_status_1_with_its_last_line(argv, line):
    done = run(*argv)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == line


@pytest.mark.parametrize(
    ("argv", "rule", "words"),
    [
        (("--quantize", "awq"), "refused_flag", "--quantize is awq"),
        (("--backend", "neuron"), "no_neuron_device", "--backend is neuron"),
        (("--max-total-tokens", "1000000"), "max_positions", "--max-total-tokens is 1000000"),
        (("--model-id", "/no/such/directory"), "model_missing", "/no/such/directory"),
        (("--hostname", "192.0.2.1"), "address", "--hostname is 192.0.2.1"),
    ],
)
def test_our_rules_have_statuses_of_their_own_and_one_clear_last_line(argv, rule, words):
    done = run(*argv, "--port", "0")
    assert done.returncode == exit_code(rule)
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stdout + done.stderr


def test_a_model_without_weights_and_a_damaged_one(tmp_path):
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 10, "n_positions": 64}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert run("--model-id", str(tmp_path)).returncode == exit_code("weights_missing")
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 100)
    assert run("--model-id", str(tmp_path)).returncode == exit_code("weights_corrupt")
    (tmp_path / "config.json").write_text("{")
    assert run("--model-id", str(tmp_path)).returncode == exit_code("config_corrupt")


@pytest.mark.case(186)
def test_a_port_in_use_names_flag_and_holder():
    with socket.create_server(("0.0.0.0", 0)) as server:
        port = server.getsockname()[1]
        done = run(env={"PORT": str(port), "HOSTNAME": "3f2a9c1b7d4e"})
    assert done.returncode == exit_code("port_in_use")
    assert f"--port is {port} (environment), but process {os.getpid()} " in done.stderr
    assert "Invalid hostname, defaulting to 0.0.0.0" in done.stdout
    assert "embedded demo model" in done.stdout
    assert "max_batch_size" in done.stdout


def test_the_demo_model_needs_no_device_where_there_is_one(tmp_path):
    for name, text in (("proc/devices", "246 neuron\n"), ("dev/neuron0", "")):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    with socket.create_server(("0.0.0.0", 0)) as server:
        port = str(server.getsockname()[1])
        done = run("--data-parallel-size", "2", env={"PORT": port, "NEURON_TGI_ROOT": str(tmp_path)})
    assert done.returncode == exit_code("port_in_use")
    assert re.search(r"backend +cpu +derived", done.stdout)
    assert "2 replicas, each with a static batch of 4 x 2048 tokens" in done.stdout


def test_json_output_is_json_in_every_line_and_env_reports_first(tmp_path):
    done = run("--json-output", "--env", "--model-id", str(tmp_path), env={"API_KEY": "hush"})
    assert done.returncode == exit_code("model_missing")
    entries = [json.loads(line) for line in done.stdout.splitlines()]
    assert entries[0]["fields"]["message"].startswith("Runtime environment:\n")
    assert entries[1]["fields"]["message"].startswith("Args {\n")
    assert "hush" not in done.stdout


def test_nobody_reading_the_log_keeps_no_one_from_stopping(tmp_path):
    """The whole launcher with stand-ins for its programs, its standard output a full pipe."""
    script = (
        "import sys; from launcher import supervisor, cli\n"
        "loud = 'while True: print(\"x\" * 1000)'\n"
        "code = (sys.executable, '-S', '-c', loud)\n"
        "cli.Supervisor = lambda *a: supervisor.Supervisor(*a, supervisor.Programs(code, code))\n"
        "sys.argv[1:] = ['--port', '0', '--hostname', '127.0.0.1']\n"
        "cli.main()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None
    head = b""
    while b"xxx" not in head:
        head += os.read(process.stdout.fileno(), 4096)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 0
    process.stdout.close()
