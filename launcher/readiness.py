"""Which generators are ready, as the router sees them; and the end of one that stopped answering it.

The router has a connection to each of them, asks after their health all the time, and tells in ``/info``.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Sequence

from launcher.health import ask, replica_phases
from launcher.shard import Shard
from neuron_server.config import RouterConfig

log = logging.getLogger("text_generation_launcher")

#: Between two looks while a generator is awaited, and while all are ready.
_PROBE_S = 0.1
_LOOK_S = 1.0
_WAITING_LOG_S = 10.0
#: A living generator that was ready is killed after so many looks in a row at which the router had lost it.
#: (The router waits for 12 s before it calls a silent one lost.) Counted, not timed: a launcher that stood
#: still itself blames nobody.
_LOST_LOOKS = 10
_ANSWERS = ("ready", "not answering")


class Readiness:
    """Looks at the generators through the router, for as long as ``watch`` runs."""

    def __init__(self, router: RouterConfig, shards: Sequence[Shard]) -> None:
        self._router = router
        self._shards = shards
        self._said = [""] * len(shards)
        self._said_at = [time.monotonic()] * len(shards)
        self._lost_looks = [0] * len(shards)

    async def watch(self, on_ready: Callable[[], None]) -> None:
        """Mark the shards that are ready and kill those that hang; forever.

        ``on_ready`` is called once, when the router first says that it serves: one ready generator is enough.
        """
        open_ = False
        while True:
            phases = await replica_phases(self._router.hostname, self._router.port)
            for shard in self._shards:
                if shard.alive:
                    self._look(shard, phases[shard.rank] if shard.rank < len(phases) else "")
            if not open_ and any(shard.ready for shard in self._shards):
                open_ = (await ask(self._router.hostname, self._router.port)).ready
                if open_:
                    on_ready()
            waiting = any(shard.alive and not shard.ready for shard in self._shards)
            await asyncio.sleep(_PROBE_S if waiting or not open_ else _LOOK_S)

    def _look(self, shard: Shard, phase: str) -> None:
        """``phase`` is the router's word; empty when it said nothing."""
        if shard.ready:
            self._look_for_life(shard, phase)
        elif phase == "ready" and os.path.exists(shard.config.uds_path):
            # Without its socket the word is about its predecessor: each one makes the socket anew.
            shard.ready = shard.was_ready = True
            self._lost_looks[shard.rank] = 0
            log.info("Shard ready in %.1fs", time.monotonic() - shard.started_at, extra=shard.extra)
        else:
            self._tell(shard, "" if phase == "ready" else phase)

    def _look_for_life(self, shard: Shard, phase: str) -> None:
        if phase in _ANSWERS or shard.child is None:
            self._lost_looks[shard.rank] = 0
        elif phase:
            self._lost_looks[shard.rank] += 1
            if self._lost_looks[shard.rank] == _LOST_LOOKS:
                log.error("Shard %d runs, but the router has lost it (%s): killing it", shard.rank, phase)
                shard.child.kill()

    def _tell(self, shard: Shard, phase: str) -> None:
        """That it is waited for: when there is news, and from time to time."""
        rank, now = shard.rank, time.monotonic()
        if (phase and phase != self._said[rank]) or now - self._said_at[rank] >= _WAITING_LOG_S:
            self._said[rank], self._said_at[rank] = phase, now
            why = f" ({phase})" if phase else ""
            log.info("Waiting for shard to be ready...%s", why, extra=shard.extra)
