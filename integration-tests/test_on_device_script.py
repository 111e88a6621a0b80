"""The script for an Inferentia2 machine, against the CPU: that it works, and that it sees a difference."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

SCRIPT = Path(__file__).with_name("on_device.py")


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, str(SCRIPT), "--device-backend=cpu", "--new-tokens=24", *flags]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


def test_the_report_of_a_cpu_against_itself_finds_every_token_equal_also_across_a_kill(tmp_path):
    done = run(f"--save-reference={tmp_path / 'reference.json'}", f"--output={tmp_path / 'report.md'}")
    report = (tmp_path / "report.md").read_text()
    assert done.returncode == 0, done.stderr + report
    assert "Every token was equal." in report
    for heading in ("### alone", "### in company", "### kill -9 meanwhile"):
        assert heading in report
    assert "Restarting shard 0" in report
    reference = json.loads((tmp_path / "reference.json").read_text())
    assert all(answer["ids"] and not answer["error"] for answer in reference)


def test_a_difference_a_short_answer_and_an_error_are_told_by_their_place():
    script = loaded()
    wanted = [script.Answer([1, 2, 3], [-0.5, -0.25, -1.0], [0.1, 0.2, 0.3]) for _ in range(4)]
    answers = [
        script.Answer([1, 2, 3], [-0.5, -0.5, -1.0]),
        script.Answer([1, 7, 3], [-0.5, -9.0, -1.0]),
        script.Answer([1, 2], [None, None]),
        script.Answer(error="status 424"),
    ]
    table, equal = script.comparison("in company", answers, wanted)
    assert not equal
    assert [line.split("|")[3:5] for line in table.splitlines()[4:]] == [
        [" equal ", " 0.25 "],
        [" **differs from token 1 on** ", " 0 "],
        [" **differs from token 2 on** ", " - "],
        [" **status 424** ", " - "],
    ]
    assert script.comparison("alone", wanted, wanted)[1]


def loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("on_device", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["on_device"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
