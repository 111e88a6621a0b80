from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from device import machines

from launcher.doctor import command
from launcher.doctor.finding import ok, warn

sys.path.insert(0, str(Path(__file__).parent))
from examined import case

ROOT = Path(__file__).parents[3]
MAIN = (sys.executable, "-c", "from launcher.cli import main; main()")


def doctor(*argv: str, root: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """The real program on a machine."""
    keep = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    where = {} if root is None else {"NEURON_TGI_ROOT": str(root)}
    return subprocess.run(
        [*MAIN, "doctor", *argv],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**keep, **where, **env},
        timeout=60,
    )


def failures(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [finding["check"] for finding in json.loads(done.stdout) if finding["status"] == "FAIL"]


@pytest.mark.parametrize(
    ("machine", "failing"),
    [
        (machines.inf2_xlarge, []),
        (machines.inf2_48xlarge, []),
        (machines.driver_too_new, ["driver"]),
        (machines.cores_held, ["cores"]),
        (machines.no_device, []),
        (machines.container_without_dmi, []),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_program_finds_on_each_machine_what_is_wrong_and_no_more(tmp_path, machine, failing):
    done = doctor("--json", root=machine(tmp_path))
    assert done.stderr == ""
    assert failures(done) == failing
    assert done.returncode == int(bool(failing))
    for finding in json.loads(done.stdout):
        assert list(finding) == ["check", "status", "found", "fix"]
        assert finding["status"] in ("ok", "warn", "FAIL")


def test_the_program_prints_lines_for_people(tmp_path):
    done = doctor(root=machines.driver_too_new(tmp_path))
    *lines, blank, counts = done.stdout.splitlines()
    assert all(line.startswith(("ok    ", "warn  ", "FAIL  ")) for line in lines)
    assert (blank, done.returncode) == ("", 1)
    assert counts.endswith("1 FAIL")


def test_this_machine_is_examined_too():
    done = doctor("--port", "0", "--backend", "cpu", "--json")
    assert failures(done) == []


def test_asking_for_neuron_without_a_device_fails(tmp_path):
    done = doctor("--json", root=machines.no_device(tmp_path), BACKEND="neuron")
    assert "devices" in failures(done)
    assert done.returncode == 1


def test_all_flags_and_variables_of_the_launcher_are_taken(tmp_path):
    root = machines.inf2_xlarge(tmp_path)
    done = doctor("--json", "--max-batch-size", "4", root=root, PORT="8080", AIP_HTTP_PORT="9090")
    assert {"check": "port", "status": "ok", "found": "0.0.0.0:9090 is free", "fix": None} in json.loads(
        done.stdout
    )


def test_a_flag_that_nobody_knows_is_a_usage_error():
    done = doctor("--no-such-flag")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--no-such-flag" in done.stderr


def test_help_names_the_statuses():
    done = doctor("--help")
    assert done.returncode == 0
    assert "--json" in done.stdout
    assert "Exit status: 0 when nothing FAILs" in done.stdout


def test_a_root_that_is_no_directory_is_refused(tmp_path):
    done = doctor(root=tmp_path / "missing")
    assert done.returncode == 1
    assert "NEURON_TGI_ROOT is" in done.stderr


def test_a_check_that_breaks_is_a_finding_and_the_others_go_on(tmp_path, monkeypatch, caplog):
    def breaks(subject):
        yield warn("middle", "said before")
        raise KeyError("surprise")

    checks = {
        "first": lambda subject: [ok("first", "fine")],
        "middle": breaks,
        "last": lambda s: [ok("last", "x")],
    }
    monkeypatch.setattr(command, "CHECKS", checks)
    found = command.examine(case(tmp_path))
    assert [str(f) for f in found] == [
        "ok    first: fine",
        "warn  middle: said before",
        "FAIL  middle: the check itself broke (KeyError: 'surprise') -> report it with what stderr says; the "
        "other checks are not affected",
        "ok    last: x",
    ]
    assert "KeyError" in caplog.text


def test_an_empty_machine_breaks_no_check(tmp_path):
    found = command.examine(case(tmp_path, port=0))
    assert not [f for f in found if "broke" in f.found]


def test_a_machine_of_garbage_breaks_no_check(tmp_path):
    """Every file that is read holds bytes that mean nothing."""
    machines.inf2_xlarge(tmp_path)
    for path in tmp_path.rglob("*"):
        if path.is_file() and not path.is_symlink() and "dev" not in path.parts:
            path.write_bytes(b"\xff\x00:\n\n 9999999999999999999999 -\xfe" * 50)
    found = command.examine(case(tmp_path))
    assert not [f for f in found if "broke" in f.found]


def test_a_machine_whose_files_are_directories_breaks_no_check(tmp_path):
    machines.inf2_xlarge(tmp_path)
    for path in list(tmp_path.rglob("*")):
        if path.is_file() and not path.is_symlink():
            path.unlink()
            path.mkdir()
    found = command.examine(case(tmp_path))
    assert not [f for f in found if "broke" in f.found]
