"""One generator over all of its lives, as the launcher sees it."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence

from launcher.child import Child, Forward
from launcher.device.cores import NUMBER, VISIBLE
from launcher.janitor import Janitor
from launcher.log_lines import Span, shard_name
from launcher.process_group import end
from launcher.restarts import Restarts
from neuron_server.config import GeneratorConfig, to_argv
from neuron_server.socket_path import clear_stale

log = logging.getLogger("text_generation_launcher")

#: How long a killed process may take to give its cores back.
_GONE_S = 5.0


class Shard:
    """``rank``, what it is started with, and how it is now.

    ``ready``: since its last start the router called it ready. ``was_ready``: it ever was. ``retry_at``: the
    moment of ``time.monotonic`` at which it is tried again; ``None`` unless it is given up for now.
    """

    def __init__(
        self,
        rank: int,
        config: GeneratorConfig,
        environment: Mapping[str, str],
        socket_flag: str,
        max_restarts: int,
    ) -> None:
        self.rank = rank
        self.config = config
        self.restarts = Restarts(max_restarts)
        self.child: Child | None = None
        self.started_at = 0.0
        self.ready = False
        self.was_ready = False
        self.retry_at: float | None = None
        self._environment = environment
        self._socket_flag = socket_flag

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self.child is not None and self.child.alive

    @property
    def extra(self) -> dict[str, Span]:
        """What marks a log line as this shard's."""
        return Span("shard-manager", self.rank).extra

    async def start(
        self, argv: Sequence[str], env: Mapping[str, str], forward: Forward, janitor: Janitor
    ) -> None:
        """Start its process; the program is ``argv``. Raises ``ConfigError`` when its socket is in use."""
        clear_stale(self.config.uds_path, self._socket_flag)
        log.info("Starting shard", extra=self.extra)
        self.started_at = time.monotonic()
        self.ready, self.retry_at = False, None
        own = {**env, **self._environment}
        if VISIBLE in self._environment:
            # Ours wins over it in the runtime, but whoever counts cores would take the smaller of the two.
            own.pop(NUMBER, None)
        name = shard_name(self.rank)
        self.child = await Child.start(name, [*argv, *to_argv(self.config)], own, forward)
        janitor.watch(self.child.pid)

    async def clear(self, janitor: Janitor) -> None:
        """Make sure that nothing is left of the process that ended.

        A core stays reserved until the last process that has it open ends, so that the next generator would
        find it taken.
        """
        if self.child is None:
            return
        if left := await end(self.child.pid, _GONE_S):
            log.error(
                "Processes of the dead shard cannot be ended (%s) and may still hold its cores",
                ", ".join(map(str, left)),
                extra=self.extra,
            )
        janitor.forget(self.child.pid)

    def say_last_words(self) -> None:
        """What it said last: the lines that were not JSON are heard here for the first time."""
        if self.child is None:
            return
        if self.child.last_words:
            log.error("Shard complete standard error output:\n%s", self.child.last_words, extra=self.extra)
        if (status := self.child.ended.result()) < 0:
            log.error("Shard process was signaled to shutdown with signal %d", -status, extra=self.extra)
