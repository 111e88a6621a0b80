"""Reports of the verbs, printed where printing fails: as processes, because the streams are the process's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PRINT = "from launcher.report_output import print_report as p; p('x' * 10**6 + chr(233) + chr(10))"
VERB = "from launcher.cli import main; main()"


def shell(redirections: str, code: str, *argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", "-c", f'"$0" -c "$@" {redirections}', sys.executable, code, *argv],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **env},
        timeout=60,
    )


def test_what_the_encoding_lacks_is_escaped():
    done = shell("", PRINT, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("x\\xe9\n")


def test_a_reader_that_leaves_early_is_no_error():
    done = shell("| head -c 3", PRINT)
    assert (done.stdout, done.stderr) == ("xxx", "")


def test_a_full_disk_is_one_line_and_no_second_complaint_at_the_end():
    done = shell("> /dev/full", VERB, "doctor")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "cannot be written to stdout: No space left on device" in done.stderr


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&- <&-"])
def test_closed_streams_change_no_status(closed):
    done = shell(closed, VERB, "plan", "--model-id", "/no/such/directory")
    assert done.returncode == 20
    assert "Traceback" not in done.stderr
    assert shell(closed, VERB, "--version").returncode == 0
