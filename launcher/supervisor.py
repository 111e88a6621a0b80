"""Starts the programs, watches them, and stops them in order.

The router starts first, so that ``/health`` answers ``loading`` from the first second, and stops first, so
that it can drain into generators that still live. A generator that dies is restarted: the router resubmits
what it was doing, to another replica or to the restarted one. Whatever happens, nothing that was started
outlives ``run``.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from launcher.child import Child, Forward, stop
from launcher.exit_codes import LaunchError
from launcher.health import url
from launcher.janitor import Janitor
from launcher.log_lines import ROUTER, Span
from launcher.plan import LaunchPlan
from launcher.program import generator_python, program
from launcher.readiness import Readiness
from launcher.shard import Shard
from launcher.sockets import free_port, socket_places
from launcher.stopping import Stopping
from neuron_server.config import RouterConfig, secret_env, to_argv
from neuron_server.errors import ConfigError
from neuron_server.lifeline import ExitCode

log = logging.getLogger("text_generation_launcher")

#: After the router's own limit for draining, before it is killed.
_ROUTER_MARGIN_S = 3.0
#: A generator has nothing to finish once the router is gone.
_GENERATOR_GRACE_S = 5.0
#: Whoever signals every process of the service ends a generator and an idle router at the same moment.
_SETTLE_S = 1.0
_START_FAILURES: Mapping[int, str] = {ExitCode.MODEL: "model", ExitCode.DEVICE: "device_failed"}
#: A port may be taken between our look and the router's; what it loads of the model is the tokenizer.
_ROUTER_FAILURES: Mapping[int, str] = {ExitCode.MODEL: "model", ExitCode.ADDRESS: "port_in_use"}


@dataclass(frozen=True, slots=True)
class Programs:
    """The command lines that the configs are appended to."""

    generator: Sequence[str] = program("neuron_server.serve_generator")
    router: Sequence[str] = program("neuron_server.serve_router")

    @classmethod
    def of(cls, env: Mapping[str, str]) -> Programs:
        """Ours, the generator with the Python that ``env`` may name for it."""
        return cls(generator=program("neuron_server.serve_generator", python=generator_python(env)))


class Supervisor:
    """One run of one plan. ``run`` returns after an orderly stop and raises for anything else.

    One dead generator never stops the others. It is restarted at once, ``max_restarts`` times within five
    minutes; after that it waits until five minutes have passed since the oldest of these restarts, and the
    others serve without it. The launcher gives up when there are no others.
    """

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
        self._programs = programs or Programs.of(env)
        self._router: Child | None = None
        self._shards = [
            Shard(rank, config, plan.environments[rank], plan.socket_flags[rank], plan.max_restarts)
            for rank, config in enumerate(plan.generators)
        ]
        self._was_ready = False

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
                for shard in self._shards:
                    await self._start_generator(shard, janitor)
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

    async def _start_generator(self, shard: Shard, janitor: Janitor) -> None:
        await shard.start(self._programs.generator, self._env, self._forward, janitor)

    # -- watching --------------------------------------------------------------------------------------------

    async def _watch(self, router: RouterConfig, janitor: Janitor) -> None:
        """Until asked to stop; restarts generators, and raises ``LaunchError`` when that is no use."""

        def on_ready() -> None:
            self._was_ready = True
            log.info("%s", _welcome(router, self._plan))

        asked = asyncio.create_task(self._stopping.requested.wait())
        looking = asyncio.create_task(Readiness(router, self._shards).watch(on_ready))
        try:
            while True:
                ends = {shard.child.ended for shard in self._shards if shard.child and shard.alive}
                if self._router is not None:
                    ends.add(self._router.ended)
                await asyncio.wait(
                    {asked, looking, *ends},
                    timeout=self._next_retry_s(),
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if asked.done():
                    return
                if looking.done():
                    looking.result()
                if self._router is not None and not self._router.alive:
                    raise self._router_failed(self._router)
                await self._bring_back(janitor)
        finally:
            asked.cancel()
            looking.cancel()

    def _next_retry_s(self) -> float | None:
        """Seconds until a generator that was given up for now is tried again; ``None`` without one."""
        retries = [shard.retry_at for shard in self._shards if shard.retry_at is not None]
        soonest = min(retries, default=float("inf"))
        return None if soonest == float("inf") else max(0.0, soonest - time.monotonic())

    async def _bring_back(self, janitor: Janitor) -> None:
        """Restart the generators that ended, or leave them be for now.

        Raises ``LaunchError`` when one never was ready, or when none is left that could serve.
        """
        dead = [shard for shard in self._shards if not shard.alive]
        fresh = [shard for shard in dead if shard.retry_at is None]
        for shard in fresh:
            await self._bury(shard, janitor)
        now, most = time.monotonic(), self._plan.max_restarts
        waits = [(shard, shard.restarts.wait_s(now)) for shard in dead]
        for shard, wait_s in waits:
            if wait_s <= 0:
                count = shard.restarts.note(now)
                log.warning("Restarting shard %d (%d of --max-restarts %d)", shard.rank, count, most)
                await self._start_generator(shard, janitor)
        used_up = f"--max-restarts {most} are used up"
        if fresh and not any(shard.alive for shard in self._shards):
            last = fresh[-1]
            how = last.child.how_it_ended() if last.child else "was never started"
            raise LaunchError(
                f"shard {last.rank} {how}, and {used_up}", rule="generator_lost", kind="ShardFailed"
            )
        for shard, wait_s in waits:
            if wait_s > 0 and shard in fresh:
                again = "" if wait_s == float("inf") else f"; it is tried again in {wait_s:.0f} s"
                log.error("Shard %d is down: %s. The others serve without it%s", shard.rank, used_up, again)
                shard.retry_at = now + wait_s

    async def _bury(self, shard: Shard, janitor: Janitor) -> None:
        """Say how a generator ended and see that nothing of it is left.

        Raises ``LaunchError`` for one that never was ready: whatever is wrong with it was wrong from the
        start, and TGI too ends there.
        """
        if shard.child is None:
            return
        how = shard.child.how_it_ended()
        shard.say_last_words()
        if shard.was_ready:
            log.error("Shard %d crashed: it %s", shard.rank, how)
        else:
            log.error("Shard %d failed to start: it %s", shard.rank, how)
        await shard.clear(janitor)
        if not shard.was_ready:
            rule = _START_FAILURES.get(shard.child.ended.result(), "generator_start")
            raise LaunchError(f"shard {shard.rank} {how}", rule=rule, kind="ShardCannotStart")

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
        if any(shard.alive for shard in self._shards):
            log.info("Shutting down shards")
        children = [shard.child for shard in self._shards if shard.child is not None]
        await asyncio.gather(*(self._stop_one(child, _GENERATOR_GRACE_S, janitor) for child in children))

    async def _restart_until(self, stopping: asyncio.Task[None], janitor: Janitor) -> None:
        """A generator that dies while the router drains is restarted as ever: requests wait for it."""
        while not stopping.done():
            ends = [shard.child.ended for shard in self._shards if shard.child and shard.alive]
            await asyncio.wait({stopping, *ends}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({stopping}, timeout=_SETTLE_S)
            if stopping.done():
                return
            try:
                await self._bring_back(janitor)
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


def _welcome(router: RouterConfig, plan: LaunchPlan) -> str:
    """What a user wants to see: that it is ready, where it is, and something to paste."""
    address, count = url(router.hostname, router.port), len(plan.generators)
    slots = f"{plan.shape.batch_size} slots of {plan.shape.max_length} tokens"
    what = slots if count == 1 else f"{count} replicas, each {slots}"
    key = " -H 'Authorization: Bearer <your api key>'" if router.api_key else ""
    return (
        f"Ready: {router.model_id} on {address} ({what}). Try:\n\n"
        f"    curl -N {address}/generate_stream -H 'Content-Type: application/json'{key} "
        '-d \'{"inputs":"What is Deep Learning?","parameters":{"max_new_tokens":40}}\'\n'
    )
