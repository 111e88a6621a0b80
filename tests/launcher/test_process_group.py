from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys

import pytest
from planning import runs

from launcher.process_group import end, members

#: Starts a child in its own group, one in a group apart, says their ids, and ends by itself.
_LEADER = """
import os, subprocess, sys
stay = [sys.executable, "-S", "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"]
one, two = subprocess.Popen(stay), subprocess.Popen(stay, preexec_fn=lambda: os.setpgid(0, 0))
print(one.pid, two.pid, flush=True)
sys.stdin.readline()
os._exit(1)
"""


@pytest.fixture
def leader():
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", _LEADER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    yield process
    for pid in members(process.pid):
        os.kill(pid, signal.SIGKILL)
    process.communicate()


async def test_what_a_dead_leader_left_is_found_and_ended(leader):
    children = sorted(map(int, leader.stdout.readline().split()))
    assert sorted(members(leader.pid)) == sorted([leader.pid, *children])
    leader.stdin.write("\n")
    leader.stdin.flush()
    await asyncio.to_thread(leader.wait)
    assert sorted(members(leader.pid)) == children
    assert await end(leader.pid, 20) == []
    assert not any(runs(pid) for pid in children)


async def test_one_that_only_waits_to_be_reaped_is_gone(leader):
    leader.stdout.readline()
    leader.kill()
    await asyncio.to_thread(os.waitid, os.P_PID, leader.pid, os.WEXITED | os.WNOWAIT)
    assert leader.pid not in members(leader.pid)
    assert await end(leader.pid, 20) == []


async def test_what_cannot_be_ended_is_named_after_the_time(leader):
    leader.stdout.readline()
    assert leader.pid in await end(leader.pid, 0)  # no time, no signal


def test_names_with_blanks_and_brackets_and_machines_without_proc(tmp_path):
    for pid, stat in (("7", "7 (a) S b) S 1 42 42 0"), ("8", "8 (x) Z 1 42 42 0"), ("9", "9 (y) R 1 9 42 0")):
        (tmp_path / "proc" / pid).mkdir(parents=True)
        (tmp_path / "proc" / pid / "stat").write_text(stat)
    (tmp_path / "proc" / "10").mkdir()
    (tmp_path / "proc" / "self").mkdir()
    assert sorted(members(42, tmp_path)) == [7, 9]
    assert members(42, tmp_path / "nowhere") == []
