from __future__ import annotations

import logging
import socket
import sys
from types import SimpleNamespace

import pytest
from planning import planned, runs

from launcher import shard as module
from launcher.shard import Shard
from neuron_server.errors import ConfigError

#: A generator that leaves a process of its own behind and ends.
_CODE = """
import subprocess, sys
stay = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"], start_new_session=False,
                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print("left", stay.pid, file=sys.stderr, flush=True)
sys.exit(4)
"""


class Janitor:
    def __init__(self) -> None:
        self.watched: list[int] = []

    def watch(self, group: int) -> None:
        self.watched.append(group)

    def forget(self, group: int) -> None:
        self.watched.remove(group)


def make(tmp_path, **environment: str) -> Shard:
    config = planned(directory=str(tmp_path)).generators[0]
    return Shard(0, config, environment, "--shard-uds-path", 3)


async def test_nothing_of_a_dead_generator_is_left_when_the_next_one_may_start(tmp_path):
    one, janitor = make(tmp_path), Janitor()
    await one.start([sys.executable, "-S", "-c", _CODE], {}, lambda *_: None, janitor)
    assert janitor.watched == [one.child.pid]
    assert await one.child.ended == 4
    assert not one.alive
    await one.clear(janitor)
    left = int(one.child.last_words.split()[1])
    assert not runs(left)
    assert janitor.watched == []


async def test_what_cannot_be_ended_is_said_and_waited_for_no_longer(tmp_path, monkeypatch, caplog):
    async def stuck(leader: int, timeout_s: float) -> list[int]:
        return [leader + 1]

    monkeypatch.setattr(module, "end", stuck)
    one, janitor = make(tmp_path), Janitor()
    one.child = SimpleNamespace(pid=41)
    janitor.watch(41)
    with caplog.at_level(logging.ERROR):
        await one.clear(janitor)
    assert "cannot be ended (42) and may still hold its cores" in caplog.text


async def test_a_start_forgets_that_the_last_life_was_ready(tmp_path):
    one = make(tmp_path)
    one.ready, one.was_ready, one.retry_at = True, True, 5.0
    await one.start([sys.executable, "-S", "-c", ""], {}, lambda *_: None, Janitor())
    assert (one.ready, one.was_ready, one.retry_at) == (False, True, None)
    await one.child.ended


async def test_a_socket_in_use_keeps_it_from_starting(tmp_path):
    one = make(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(one.config.uds_path)
        server.listen()
        with pytest.raises(ConfigError, match="--shard-uds-path"):
            await one.start([sys.executable, "-c", ""], {}, lambda *_: None, Janitor())
    assert one.child is None
