"""One open ``Generate`` call and the requests that share it."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import grpc
import grpc.aio

from neuron_server.errors import GeneratorLostError, NeuronTgiError
from neuron_server.event import TokenEvent
from neuron_server.request import GenerationRequest
from neuron_server.session import Pass
from neuron_server.wire.codec import decode_error, decode_event, decode_pass, encode_cancel, encode_submit
from neuron_server.wire.pb import generator_pb2 as pb

log = logging.getLogger(__name__)

#: What one request receives: its events in order; an error is the last item.
EventQueue: TypeAlias = "asyncio.Queue[TokenEvent | NeuronTgiError]"

#: Who measures: the passes of one message, and the seconds that delivering its tokens took.
OnPasses: TypeAlias = Callable[[Sequence[Pass], float], None]


class Connection:
    """Multiplexes requests over one call. It lives once: when it is lost, every request on it is told.

    ``call`` is an open ``Generate`` call (``Any``: grpc ships no types). ``on_step(free_slots, queued)`` is
    called for each message; ``on_passes(passes, delivery_s)`` for each that tells of passes, after its tokens
    were handed to their requests, which took ``delivery_s``; ``on_lost(connection, why)`` once, before any
    request learns of the loss, so that whoever resubmits in answer to it finds the new state of things.
    """

    def __init__(
        self,
        call: Any,
        *,
        on_step: Callable[[int, int], None],
        on_passes: OnPasses,
        on_lost: Callable[[Connection, str], None],
    ) -> None:
        self._call = call
        self._on_step = on_step
        self._on_passes = on_passes
        self._on_lost = on_lost
        self._ids = itertools.count(1)
        self._open: dict[int, EventQueue] = {}
        self._outbox: asyncio.Queue[pb.GenerateRequest] = asyncio.Queue()
        self._lost = False

    @property
    def open_requests(self) -> int:
        """Requests that were submitted and have not ended, failed or been cancelled."""
        return len(self._open)

    def submit(self, request: GenerationRequest) -> tuple[int, EventQueue]:
        """Send the request; its id, and the queue of its events. Never waits."""
        request_id = next(self._ids)
        message = encode_submit(request_id, request)
        queue: EventQueue = asyncio.Queue()
        self._open[request_id] = queue
        self._outbox.put_nowait(message)
        return request_id, queue

    def cancel(self, request_id: int) -> None:
        """Free what the request holds; nothing happens when it has ended. Never waits."""
        if self._open.pop(request_id, None) is not None:
            self._outbox.put_nowait(encode_cancel(request_id))

    def lose(self, why: str) -> None:
        """End the call and every request on it with ``GeneratorLostError(why)``. Idempotent."""
        if self._lost:
            return
        self._lost = True
        self._on_lost(self, why)
        for queue in self._open.values():
            queue.put_nowait(GeneratorLostError(why))
        self._open.clear()
        self._call.cancel()

    async def run(self) -> None:
        """Carry messages both ways until the connection is lost, or this task is cancelled."""
        writer = asyncio.create_task(self._write())
        why = "the connection to the generator was cancelled"
        try:
            await self._read()
            why = "the generator ended the connection"
        except grpc.aio.AioRpcError as error:
            why = f"the connection to the generator broke: {error.details() or error.code().name}"
        except Exception as error:
            log.exception("an event of the generator could not be read")
            why = f"an event of the generator could not be read: {error!r}"
        finally:
            self.lose(why)
            writer.cancel()

    async def _read(self) -> None:
        while (message := await self._call.read()) is not grpc.aio.EOF:
            self._dispatch(message)

    def _dispatch(self, message: pb.StepEvents) -> None:
        """Hand each event to its request. Ids that are not open were cancelled a moment ago."""
        if self._lost:
            return
        started_s = time.perf_counter()
        self._on_step(message.free_slots, message.queued)
        for sent in message.tokens:
            queue = self._open.get(sent.request_id)
            if queue is not None:
                if sent.finish:
                    del self._open[sent.request_id]
                queue.put_nowait(decode_event(sent))
        lost = None
        for failed in message.errors:
            error = decode_error(failed)
            if isinstance(error, GeneratorLostError):
                lost = str(error)
            elif (queue := self._open.pop(failed.request_id, None)) is not None:
                queue.put_nowait(error)
        if message.passes:
            delivery_s = time.perf_counter() - started_s
            self._on_passes([decode_pass(sent) for sent in message.passes], delivery_s)
        if lost is not None:
            self.lose(lost)  # a dead device fails everything, and its process is about to exit

    async def _write(self) -> None:
        try:
            while True:
                await self._call.write(await self._outbox.get())
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return  # the call is over; the reader knows why
