"""The script for an Inferentia2 machine, against the CPU: that it works, and that it sees a difference."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

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

    reference[3]["ids"][5] += 1
    (tmp_path / "reference.json").write_text(json.dumps(reference))
    done = run(f"--reference={tmp_path / 'reference.json'}")
    assert done.returncode == 1
    assert "differs from token 5 on" in done.stdout
    assert "Something differed or failed" in done.stdout
