"""The router's side of the wire: one generator as a ``TokenSource`` that knows when it is lost."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from typing import Any

import grpc
import grpc.aio

from neuron_server.backend import BackendInfo
from neuron_server.errors import GeneratorLostError, NeuronTgiError, UnavailableError
from neuron_server.event import TokenEvent
from neuron_server.request import GenerationRequest
from neuron_server.session import Phase, Status
from neuron_server.wire.codec import decode_info, decode_status, error_of_status
from neuron_server.wire.connection import Connection, OnPasses
from neuron_server.wire.pb import generator_pb2 as pb
from neuron_server.wire.service import SERVICE, target

log = logging.getLogger(__name__)

_OPTIONS = (
    ("grpc.max_receive_message_length", -1),  # a step of many prompts' log-probabilities has no fixed size
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),  # two clients of one socket are two connections
    # A generator may come up at any moment: try again soon. (gRPC waits a second and more by default.)
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.enable_retries", 0),  # a submission must not reach the engine twice
    ("grpc.enable_http_proxy", 0),
)

#: ``Status.detail`` of a generator that was connected once and is not any more starts with this.
LOST = "lost"


class GeneratorClient:
    """A ``TokenSource`` over gRPC. ``start`` it inside a running event loop, ``close`` it at the end.

    It connects in the background, as often as it takes: the socket need not exist yet, and a generator that
    was restarted is found again. Its state is a ``Status``: what the generator said last (in a step, or to
    the health poll every ``poll_interval_s``); ``Phase.LOADING`` while nobody answers, with a ``detail`` that
    starts with ``LOST`` if somebody once did. ``READY`` means that ``stream`` works now.

    ``on_passes`` hears what the generator measured (see ``Connection``), ``on_lost`` of each connection that
    broke other than by ``close``.
    """

    def __init__(
        self,
        uds_path: str,
        *,
        poll_interval_s: float = 0.5,
        retry_s: float = 0.1,
        health_timeout_s: float = 2.0,
        patience: int = 5,
        on_passes: OnPasses = lambda _passes, _delivery_s: None,
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        self.uds_path = uds_path
        self._poll_interval_s = poll_interval_s
        self._retry_s = retry_s
        self._health_timeout_s = health_timeout_s
        # A generator that was stopped, not killed, closes nothing: so many health checks in a row without an
        # answer mean lost. (gRPC's keepalive does not help: it was seen to send no pings on a unix socket.)
        # Counted, not timed, so that a router that stood still itself blames nobody.
        self._patience = patience
        self._hear_passes = on_passes
        self._hear_loss = on_lost
        self._missed = 0
        self._status = Status(Phase.LOADING)
        self._info: BackendInfo | None = None
        self._connection: Connection | None = None
        self._ready = asyncio.Event()
        self._wake = asyncio.Event()
        self._closing = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._channel: Any = None  # grpc ships no types: a grpc.aio.Channel, and three of its callables
        self._call_info: Any = None
        self._call_health: Any = None
        self._call_generate: Any = None

    # -- life ------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to connect, and return at once. Raises nothing: what is wrong shows in ``status``."""
        channel = grpc.aio.insecure_channel(target(self.uds_path), options=_OPTIONS)
        self._channel = channel
        self._call_info = channel.unary_unary(
            f"/{SERVICE}/Info", pb.InfoRequest.SerializeToString, pb.InfoResponse.FromString
        )
        self._call_health = channel.unary_unary(
            f"/{SERVICE}/Health", pb.HealthRequest.SerializeToString, pb.HealthResponse.FromString
        )
        self._call_generate = channel.stream_stream(
            f"/{SERVICE}/Generate", pb.GenerateRequest.SerializeToString, pb.StepEvents.FromString
        )
        self._spawn(self._maintain())

    async def close(self) -> None:
        """Stop; streams that are open end with ``GeneratorLostError``. Idempotent."""
        self._closing = True
        if self._connection is not None:
            self._connection.lose("the connection to the generator was closed")
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    async def wait_ready(self) -> None:
        """Until ``stream`` works. Waits without bound; bound it with ``asyncio.wait_for``."""
        await self._ready.wait()

    # -- state -----------------------------------------------------------------------------------------------

    @property
    def status(self) -> Status:
        """The latest known state; see the class."""
        return self._status

    @property
    def info(self) -> BackendInfo:
        """What the generator said when it became ready, also while it restarts; or ``UnavailableError``."""
        if self._info is None:
            raise UnavailableError(f"the generator is {self._status.phase.value}")
        return self._info

    @property
    def open_requests(self) -> int:
        """Streams that were submitted and have not ended: known here, without a round trip."""
        return self._connection.open_requests if self._connection is not None else 0

    @property
    def silent(self) -> bool:
        """Whether the last health check got no answer; ``patience`` of them in a row, and it is lost."""
        return self._missed > 0

    async def health(self, timeout_s: float = 2.0) -> Status:
        """Ask the generator now. ``GeneratorLostError`` when it does not answer in ``timeout_s`` seconds."""
        if self._channel is None:
            raise GeneratorLostError("the connection to the generator was closed")
        try:
            return decode_status(await self._call_health(pb.HealthRequest(), timeout=timeout_s))
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise GeneratorLostError(f"no answer to a health check for {timeout_s:g} s") from None
            raise GeneratorLostError(error.details() or error.code().name) from None

    # -- the call shape --------------------------------------------------------------------------------------

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        """The events of one request, in order; see ``TokenSource``.

        Raises ``UnavailableError`` when the generator is not ready, ``GeneratorLostError`` when the
        connection breaks on the way, and otherwise what the generator raised. Closing it sends a cancel
        without waiting.
        """
        connection = self._connection
        if connection is None:
            detail = f" ({self._status.detail})" if self._status.detail else ""
            raise UnavailableError(f"the generator is {self._status.phase.value}{detail}")
        request_id, events = connection.submit(request)
        try:
            while True:
                event = await events.get()
                if isinstance(event, NeuronTgiError):
                    raise event
                yield event
                if event.finish is not None:
                    return
        finally:
            connection.cancel(request_id)

    # -- behind the scenes -----------------------------------------------------------------------------------

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _maintain(self) -> None:
        """Keep a connection and a fresh status, for as long as the client lives."""
        while not self._closing:  # wait_for may swallow a cancellation (until Python 3.12)
            try:
                await self._poll()
            except GeneratorLostError as error:
                self._miss(str(error))
            except NeuronTgiError as error:
                self._status = Status(Phase.LOADING, detail=str(error))
            except Exception:
                log.exception("%s: the health check failed", self.uds_path)
            pause_s = self._poll_interval_s if self._connection is not None else self._retry_s
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._wake.wait(), pause_s)
            self._wake.clear()

    async def _poll(self) -> None:
        status = await self.health(self._health_timeout_s)
        self._missed = 0
        if status.phase is Phase.READY:
            if self._connection is None:
                await self._connect()
            self._status = status
            self._ready.set()
            return
        if self._connection is None:
            self._status = status
        else:
            self._connection.lose(f"the generator is {status.phase.value} {status.detail}".rstrip())
            self._status = status

    async def _connect(self) -> None:
        try:
            info = decode_info(await self._call_info(pb.InfoRequest(), timeout=self._health_timeout_s))
        except grpc.aio.AioRpcError as error:
            raise error_of_status(error.code(), error.details() or error.code().name) from None
        if self._info is not None and info != self._info:
            log.warning("%s: the generator came back as %s; it was %s", self.uds_path, info, self._info)
        self._info = info
        self._connection = Connection(
            self._call_generate(), on_step=self._on_step, on_passes=self._hear_passes, on_lost=self._on_lost
        )
        self._spawn(self._connection.run())
        log.info("%s: connected (%s on %s, %s)", self.uds_path, info.shape, info.device, info.dtype)

    def _miss(self, why: str) -> None:
        """Nobody answered. The connection itself, while there is one, knows better whether it is lost."""
        if self._connection is None:
            detail = f"{LOST}: {why}" if self._info is not None else ""
            self._status = Status(Phase.LOADING, detail=detail)
            return
        self._missed += 1
        if self._missed < self._patience:
            self._status = replace(self._status, detail=why)
        else:
            self._connection.lose(f"{why}, {self._missed} times in a row")

    def _on_step(self, free_slots: int, queued: int) -> None:
        self._missed = 0
        self._status = Status(Phase.READY, free_slots, queued)

    def _on_lost(self, connection: Connection, why: str) -> None:
        if connection is self._connection:
            if not self._closing:
                log.warning("%s: %s; %d requests were open", self.uds_path, why, connection.open_requests)
                self._hear_loss()
            self._connection = None
            self._status = Status(Phase.LOADING, detail=f"{LOST}: {why}")
            self._ready.clear()
            self._wake.set()
