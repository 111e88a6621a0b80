from __future__ import annotations

import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.janitor import Janitor

ROOT = Path(__file__).parents[2]

#: A launcher that is killed: starts one process in a group of its own, then its janitor.
_LAUNCHER = """
import os, subprocess, sys, time
from launcher.janitor import Janitor
code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
child = subprocess.Popen(
    [sys.executable, "-S", "-c", code], start_new_session=True, stdout=subprocess.PIPE, close_fds=True
)
child.stdout.readline()
janitor = Janitor(sys.argv[1] or None, sys.argv[2:])
janitor.watch(999999999)
janitor.forget(999999999)
janitor.watch(child.pid)
print(child.pid, janitor._process.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("private", [True, False])
def test_a_killed_launcher_leaves_no_process_no_socket_and_no_directory(tmp_path, private):
    directory = tmp_path / "private"
    directory.mkdir()
    sockets = [directory / "shard-0", directory / "shard 1"]
    for path in sockets:
        path.touch()
    launcher = subprocess.Popen(
        [sys.executable, "-c", _LAUNCHER, str(directory) if private else "", *map(str, sockets)],
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    assert launcher.stdout is not None
    child, janitor = map(int, launcher.stdout.readline().split())
    watched = [os.pidfd_open(pid) for pid in (janitor, child)]
    launcher.kill()
    launcher.wait()
    launcher.stdout.close()
    for watch in watched:
        assert select.select([watch], [], [], 20)[0], "it still runs"
        os.close(watch)
    assert not any(path.exists() for path in sockets)
    assert directory.exists() is not private


def test_close_removes_what_is_left_and_kills_nothing_forgotten(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "s").touch()
    other = subprocess.Popen(
        [sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True
    )
    janitor = Janitor(str(tmp_path / "d"), [str(tmp_path / "d" / "s")])
    janitor.watch(other.pid)
    janitor.forget(other.pid)
    janitor.close()
    assert not (tmp_path / "d").exists()
    assert other.poll() is None
    other.kill()
    other.communicate()


def test_a_directory_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "precious").touch()
    janitor = Janitor(str(tmp_path), [str(tmp_path / "s")])
    janitor.close()
    assert (tmp_path / "precious").exists()


def test_without_a_shell_the_launcher_only_warns(tmp_path, monkeypatch, heard):
    monkeypatch.setenv("PATH", str(tmp_path))
    janitor = Janitor(None, [])
    janitor.watch(1)
    janitor.close()
    assert "no sh here" in heard.text
