"""Starts the programs, watches them, and stops them in order.

The router starts first, so that ``/health`` answers ``loading`` from the first second, and stops first, so
that it can drain into generators that still live. A generator that dies is restarted: the router resubmits
what it was doing. Whatever happens, nothing that was started outlives ``run``.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from launcher.child import Child, Forward, stop
from launcher.exit_codes import LaunchError
from launcher.health import ask, url
from launcher.janitor import Janitor
from launcher.log_lines import ROUTER, Span, shard_name
from launcher.plan import LaunchPlan
from launcher.program import program
from launcher.sockets import free_port, socket_places
from launcher.stopping import Stopping
from neuron_server.config import RouterConfig, secret_env, to_argv
from neuron_server.errors import ConfigError
from neuron_server.lifeline import ExitCode
from neuron_server.socket_path import clear_stale

log = logging.getLogger("text_generation_launcher")

RESTART_WINDOW_S = 300.0
#: After the router's own limit for draining, before it is killed.
_ROUTER_MARGIN_S = 3.0
#: A generator has nothing to finish once the router is gone.
_GENERATOR_GRACE_S = 5.0
#: Whoever signals every process of the service ends a generator and an idle router at the same moment.
_SETTLE_S = 1.0
_PROBE_S = 0.1
_WAITING_LOG_S = 10.0
_START_FAILURES: Mapping[int, str] = {ExitCode.MODEL: "model", ExitCode.DEVICE: "device_failed"}
#: A port may be taken between our look and the router's; what it loads of the model is the tokenizer.
_ROUTER_FAILURES: Mapping[int, str] = {ExitCode.MODEL: "model", ExitCode.ADDRESS: "port_in_use"}


@dataclass(frozen=True, slots=True)
class Programs:
    """The command lines that the configs are appended to."""

    generator: Sequence[str] = program("neuron_server.serve_generator")
    router: Sequence[str] = program("neuron_server.serve_router")


class Supervisor:
    """One run of one plan. ``run`` returns after an orderly stop and raises for anything else."""

    def __init__(
        self,
        plan: LaunchPlan,
        env: Mapping[str, str],
        forward: Forward,
        stopping: Stopping,
        programs: Programs | None = None,
    ) -> None:
        self._plan = plan
        self._env = env
        self._forward = forward
        self._stopping = stopping
        self._programs = programs or Programs()
        self._router: Child | None = None
        self._generators: dict[int, Child] = {}
        self._started_at: dict[int, float] = {}
        self._was_ready = False
        self._restarts: deque[float] = deque()

    async def run(self) -> None:
        """Serve until asked to stop.

        Raises ``ConfigError`` (port or socket cannot be used) and ``LaunchError`` (a program failed).
        """
        row = next(row for row in self._plan.rows if row.name == "port")
        router = self._plan.router
        flag = f"--port is {router.port} ({row.source.value})"
        router = replace(router, port=free_port(router.hostname, router.port, flag))
        with socket_places(self._plan):
            sockets = [generator.uds_path for generator in self._plan.generators]
            janitor = Janitor(self._plan.socket_directory, sockets)
            try:
                await self._start_router(router, janitor)
                for rank in range(len(self._plan.generators)):
                    await self._start_generator(rank, janitor)
                await self._watch(router, janitor)
            finally:
                await self._stop_all(janitor)
                janitor.close()

    # -- starting --------------------------------------------------------------------------------------------

    async def _start_router(self, router: RouterConfig, janitor: Janitor) -> None:
        log.info("Starting Webserver")
        env = {**self._env, **secret_env(router)}
        argv = [*self._programs.router, *to_argv(router)]
        self._router = await Child.start(ROUTER, argv, env, self._forward)
        janitor.watch(self._router.pid)

    async def _start_generator(self, rank: int, janitor: Janitor) -> None:
        config = self._plan.generators[rank]
        clear_stale(config.uds_path, self._plan.socket_flags[rank])
        log.info("Starting shard", extra=_span(rank).extra)
        self._started_at[rank] = time.monotonic()
        argv = [*self._programs.generator, *to_argv(config)]
        env = {**self._env, **self._plan.environments[rank]}
        child = await Child.start(shard_name(rank), argv, env, self._forward)
        self._generators[rank] = child
        janitor.watch(child.pid)

    # -- watching --------------------------------------------------------------------------------------------

    async def _watch(self, router: RouterConfig, janitor: Janitor) -> None:
        """Until asked to stop; restarts generators, and raises ``LaunchError`` when that is no use."""
        asked = asyncio.create_task(self._stopping.requested.wait())
        ready = asyncio.create_task(self._until_ready(router))
        try:
            while True:
                ends = [child.ended for child in (self._router, *self._generators.values()) if child]
                waits = {asked, *ends} | ({ready} if not ready.done() else set())
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                if asked.done():
                    return
                if ready.done():
                    ready.result()
                if self._router is not None and not self._router.alive:
                    raise self._router_failed(self._router)
                for rank, child in self._generators.items():
                    if not child.alive:
                        ready.cancel()
                        await self._restart(rank, child, janitor)
                        ready = asyncio.create_task(self._until_ready(router))
        finally:
            asked.cancel()
            ready.cancel()

    async def _until_ready(self, router: RouterConfig) -> None:
        """Ask the router until every generator listens and it says ready; tell the log how it goes."""
        said, said_at = "", time.monotonic()
        while True:
            health = await ask(router.hostname, router.port)
            if health.ready and _all_exist(router.shard_uds_paths):
                break
            now = time.monotonic()
            if (health.text and health.text != said) or now - said_at >= _WAITING_LOG_S:
                said, said_at = health.text, now
                why = f" ({said})" if said else ""
                for rank in self._started_at:
                    log.info("Waiting for shard to be ready...%s", why, extra=_span(rank).extra)
            await asyncio.sleep(_PROBE_S)
        for rank, started_at in self._started_at.items():
            log.info("Shard ready in %.1fs", time.monotonic() - started_at, extra=_span(rank).extra)
        self._started_at.clear()
        if not self._was_ready:
            self._was_ready = True
            log.info("%s", _welcome(router, self._plan))

    async def _restart(self, rank: int, child: Child, janitor: Janitor) -> None:
        janitor.forget(child.pid)
        how = child.how_it_ended()
        _say_last_words(rank, child)
        if not self._was_ready:
            log.error("Shard %d failed to start: it %s", rank, how)
            rule = _START_FAILURES.get(child.ended.result(), "generator_start")
            raise LaunchError(f"shard {rank} {how}", rule=rule, kind="ShardCannotStart")
        log.error("Shard %d crashed: it %s", rank, how)
        now = time.monotonic()
        while self._restarts and now - self._restarts[0] > RESTART_WINDOW_S:
            self._restarts.popleft()
        most = self._plan.max_restarts
        if len(self._restarts) >= most:
            raise LaunchError(
                f"shard {rank} {how}, and --max-restarts {most} are used up",
                rule="generator_lost",
                kind="ShardFailed",
            )
        self._restarts.append(now)
        log.warning("Restarting shard %d (%d of --max-restarts %d)", rank, len(self._restarts), most)
        await self._start_generator(rank, janitor)

    def _router_failed(self, router: Child) -> LaunchError:
        how = router.how_it_ended()
        words = f"; its last words:\n{router.last_words}" if router.last_words else ", without a word"
        log.error("Webserver Crashed: it %s%s", how, words)
        rule = _ROUTER_FAILURES.get(router.ended.result(), "router_failed")
        return LaunchError(f"the router {how}", rule=rule, kind="WebserverFailed")

    # -- stopping --------------------------------------------------------------------------------------------

    async def _stop_all(self, janitor: Janitor) -> None:
        """The router first, with the time to drain if this is an orderly stop; then the generators."""
        if self._router is not None:
            orderly = self._stopping.requested.is_set()
            drain_s = self._plan.router.graceful_termination_timeout + _ROUTER_MARGIN_S
            grace_s = drain_s if orderly else _GENERATOR_GRACE_S
            stopping = asyncio.create_task(self._stop_one(self._router, grace_s, janitor))
            if orderly and self._was_ready:
                await self._restart_until(stopping, janitor)
            await stopping
        if any(child.alive for child in self._generators.values()):
            log.info("Shutting down shards")
        stops = (self._stop_one(child, _GENERATOR_GRACE_S, janitor) for child in self._generators.values())
        await asyncio.gather(*stops)

    async def _restart_until(self, stopping: asyncio.Task[None], janitor: Janitor) -> None:
        """A generator that dies while the router drains is restarted as ever: requests wait for it."""
        while not stopping.done():
            ends = [child.ended for child in self._generators.values()]
            await asyncio.wait({stopping, *ends}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({stopping}, timeout=_SETTLE_S)
            for rank, child in self._generators.items():
                if stopping.done() or child.alive:
                    continue
                try:
                    await self._restart(rank, child, janitor)
                except (LaunchError, ConfigError) as error:
                    log.error("%s; the router goes on without", error)
                    return

    async def _stop_one(self, child: Child, grace_s: float, janitor: Janitor) -> None:
        if child.alive:
            span = Span.of(child.name)
            name, extra = ("shard", span.extra) if span else (child.name, None)
            log.info("Terminating %s", name, extra=extra)
            log.info("Waiting for %s to gracefully shutdown", name, extra=extra)
            if await stop(child, grace_s, self._stopping.hurried):
                log.info("%s terminated", name, extra=extra)
            else:
                hurried = self._stopping.hurried.is_set()
                why = "a second signal asked for it" if hurried else f"it did not stop within {grace_s:.0f} s"
                log.warning("%s killed: %s", name, why, extra=extra)
        janitor.forget(child.pid)


def _span(rank: int) -> Span:
    return Span("shard-manager", rank)


def _say_last_words(rank: int, child: Child) -> None:
    """What a dead generator said last: the lines that were not JSON are heard here for the first time."""
    if child.last_words:
        log.error("Shard complete standard error output:\n%s", child.last_words, extra=_span(rank).extra)
    if (status := child.ended.result()) < 0:
        log.error("Shard process was signaled to shutdown with signal %d", -status, extra=_span(rank).extra)


def _all_exist(paths: Sequence[str]) -> bool:
    """Whether each generator listens: one that was just restarted has not made its socket anew."""
    return all(os.path.exists(path) for path in paths)


def _welcome(router: RouterConfig, plan: LaunchPlan) -> str:
    """What a user wants to see: that it is ready, where it is, and something to paste."""
    address = url(router.hostname, router.port)
    key = " -H 'Authorization: Bearer <your api key>'" if router.api_key else ""
    return (
        f"Ready: {router.model_id} on {address} ({plan.shape.batch_size} slots of {plan.shape.max_length} "
        f"tokens). Try:\n\n    curl -N {address}/generate_stream -H 'Content-Type: application/json'{key} "
        '-d \'{"inputs":"What is Deep Learning?","parameters":{"max_new_tokens":40}}\'\n'
    )
