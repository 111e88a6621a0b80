from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from launcher import readiness
from launcher.health import Health
from launcher.readiness import Readiness
from neuron_server.config import RouterConfig

ROUTER = RouterConfig(
    model_id="M",
    tokenizer_path="/m",
    shard_uds_paths=("/a", "/b"),
    batch_size=2,
    max_input_tokens=8,
    max_total_tokens=16,
)


class Shard:
    """What a ``Shard`` shows of itself to whoever looks, with a socket that exists or does not."""

    def __init__(self, rank: int, path: str) -> None:
        self.rank = rank
        self.config = SimpleNamespace(uds_path=path)
        self.alive, self.ready, self.was_ready, self.started_at = True, False, False, 0.0
        self.extra = None
        self.kills = 0
        self.child = SimpleNamespace(kill=self.kill)

    def kill(self) -> None:
        self.kills += 1


class Router:
    """Says one item of ``script`` at each look; after the last one it never answers again."""

    def __init__(self, script: list[tuple[str, ...]]) -> None:
        self.script = iter(script)
        self.told = asyncio.Event()
        self.opens = 0

    async def phases(self, hostname: str, port: int) -> tuple[str, ...]:
        phases = next(self.script, None)
        if phases is None:
            self.told.set()
            await asyncio.Event().wait()
        return phases or ()

    async def health(self, hostname: str, port: int) -> Health:
        return Health(200)

    def on_ready(self) -> None:
        self.opens += 1


@pytest.fixture
def watched(monkeypatch, tmp_path):
    """Lets two shards be watched over a script; the shards and the router."""

    async def watch(script, *, sockets: bool = True) -> tuple[list[Shard], Router]:
        shards, router = [Shard(rank, str(tmp_path / str(rank))) for rank in range(2)], Router(script)
        for shard in shards if sockets else ():
            (tmp_path / str(shard.rank)).touch()
        monkeypatch.setattr(readiness, "replica_phases", router.phases)
        monkeypatch.setattr(readiness, "ask", router.health)
        monkeypatch.setattr(readiness, "_LOOK_S", 0.0)
        monkeypatch.setattr(readiness, "_PROBE_S", 0.0)
        task = asyncio.create_task(Readiness(ROUTER, shards).watch(router.on_ready))
        await asyncio.wait_for(router.told.wait(), 20)
        task.cancel()
        return shards, router

    return watch


async def test_each_is_ready_when_the_router_says_so_and_it_opens_once(watched):
    shards, router = await watched([(), ("loading", "loading"), ("loading", "ready"), ("ready", "ready")])
    assert [shard.ready for shard in shards] == [True, True]
    assert router.opens == 1


async def test_without_its_socket_the_word_is_about_its_predecessor(watched):
    shards, router = await watched([("ready", "ready")] * 5, sockets=False)
    assert [shard.was_ready for shard in shards] == [False, False]
    assert router.opens == 0


LOOKS = readiness._LOST_LOOKS


@pytest.mark.parametrize(
    ("said", "kills"),
    [
        ([("lost", "ready")] * LOOKS, [1, 0]),
        ([("lost", "ready")] * 3 * LOOKS, [1, 0]),  # once is enough
        (
            [("lost", "ready")] * (LOOKS - 1) + [("ready", "ready")] + [("lost", "ready")] * (LOOKS - 1),
            [0, 0],
        ),
        ([("not answering", "ready")] * 3 * LOOKS, [0, 0]),  # the router has not given it up
        ([()] * 3 * LOOKS, [0, 0]),  # a router that says nothing blames nobody
        ([("failed", "lost")] * LOOKS, [1, 1]),
    ],
)
async def test_one_that_the_router_has_lost_for_long_is_killed(watched, said, kills):
    shards, _ = await watched([("ready", "ready"), *said])
    assert [shard.kills for shard in shards] == kills


async def test_one_that_still_loads_is_never_killed(watched):
    shards, _ = await watched([("loading", "ready")] * 3 * LOOKS)
    assert [shard.kills for shard in shards] == [0, 0]
