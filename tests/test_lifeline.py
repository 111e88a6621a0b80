"""A program dies with the launcher that started it, and only then."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from neuron_server import lifeline
from neuron_server.lifeline import PARENT_PID_VARIABLE, ExitCode

CHILD = """
import sys, time
from neuron_server import lifeline
{setup}
lifeline.die_with_parent()
print("up", flush=True)
time.sleep(60)
"""

PARENT = """
import os, subprocess, sys
env = {{**os.environ, "NEURON_TGI_PARENT_PID": {pid}}}
child = subprocess.Popen([sys.executable, "-c", {child!r}], env=env)
print("child ended with", child.wait(), flush=True)
"""


def start_family(pid: str = "str(os.getpid())", setup: str = "") -> subprocess.Popen[bytes]:
    """A parent and its child, both writing to one pipe: it reaches its end when the last of them is gone."""
    child = CHILD.format(setup=setup)
    return subprocess.Popen(
        [sys.executable, "-c", PARENT.format(pid=pid, child=child)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parent.parent,
        start_new_session=True,
    )


def read_line(parent: subprocess.Popen[bytes]) -> bytes:
    assert parent.stdout is not None
    return parent.stdout.readline()


@pytest.fixture
def families():
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for parent in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(parent.pid, signal.SIGKILL)
        parent.wait()
        assert parent.stdout is not None
        parent.stdout.close()


@pytest.mark.parametrize(
    "setup", ["", "lifeline._signal_on_parent_death = lambda: False"], ids=["prctl", "polling"]
)
def test_a_child_ends_when_its_parent_is_killed(families, setup):
    parent = start_family(setup=setup)
    families.append(parent)
    assert read_line(parent) == b"up\n"
    parent.kill()
    assert read_line(parent) == b""


def test_a_child_whose_parent_is_gone_already_ends_at_once(families):
    parent = start_family(pid="'1'")
    families.append(parent)
    assert read_line(parent) == b"child ended with -15\n"


def test_started_by_hand_nothing_is_watched(monkeypatch):
    monkeypatch.delenv(PARENT_PID_VARIABLE, raising=False)
    monkeypatch.setattr(lifeline, "_signal_on_parent_death", lambda: pytest.fail("asked the kernel"))
    lifeline.die_with_parent()


def test_a_parent_id_that_is_no_number_is_refused_by_name(monkeypatch):
    monkeypatch.setenv(PARENT_PID_VARIABLE, "launcher")
    with pytest.raises(SystemExit, match="NEURON_TGI_PARENT_PID is 'launcher'"):
        lifeline.die_with_parent()


def test_exit_codes_are_distinct_and_usage_is_argparse_s():
    assert len({int(code) for code in ExitCode}) == len(ExitCode)
    assert ExitCode.USAGE == 2
