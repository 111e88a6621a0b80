"""The generator's side of the wire: one session per ``Generate`` call, one message per step."""

from __future__ import annotations

import asyncio
import logging
import os
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio

from neuron_server import submission
from neuron_server.errors import ConfigError, NeuronTgiError, ValidationError
from neuron_server.session import SessionSource, Step
from neuron_server.wire.codec import (
    decode_submit,
    encode_info,
    encode_status,
    encode_step,
    status_code,
)
from neuron_server.wire.pb import generator_pb2 as pb

log = logging.getLogger(__name__)

#: Shared with the client: "neuronx_tgi.v1.Generator".
SERVICE = pb.DESCRIPTOR.services_by_name["Generator"].full_name

_OPTIONS = (
    ("grpc.max_receive_message_length", -1),  # a prompt has no length the transport should know
    ("grpc.max_send_message_length", -1),
)


def target(uds_path: str) -> str:
    """The gRPC name of a unix socket; gRPC reads it as a URI, so ``%`` and the like are escaped."""
    return "unix:" + urllib.parse.quote(uds_path)


@asynccontextmanager
async def serving(
    source: SessionSource, uds_path: str, *, grace_s: float = 1.0
) -> AsyncIterator[Callable[[float], Awaitable[None]]]:
    """Serve ``source`` on ``uds_path``; at the end, calls get ``grace_s`` seconds to send what they have.

    Yields a function that ends all calls earlier, after so many seconds. Only the owner of the socket may use
    it (mode 600). Raises ``ConfigError`` when it cannot be made; a socket that is there is replaced, so the
    caller makes sure that nobody serves on it.
    """
    server = grpc.aio.server(options=_OPTIONS)
    server.add_generic_rpc_handlers((GeneratorService(source).handler(),))
    try:
        server.add_insecure_port(target(uds_path))
    except RuntimeError as error:
        raise ConfigError(f"cannot serve on the socket {uds_path}: {error}") from error
    os.chmod(uds_path, 0o600)
    await server.start()
    try:
        yield server.stop
    finally:
        await server.stop(grace_s)


class GeneratorService:
    """The three methods of ``protos/generator.proto`` over a ``SessionSource``."""

    def __init__(self, source: SessionSource) -> None:
        self._source = source

    def handler(self) -> grpc.GenericRpcHandler:
        """The method table; written out, so that no generated gRPC code ties us to one gRPC version."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Info": grpc.unary_unary_rpc_method_handler(
                    self.info, pb.InfoRequest.FromString, pb.InfoResponse.SerializeToString
                ),
                "Health": grpc.unary_unary_rpc_method_handler(
                    self.health, pb.HealthRequest.FromString, pb.HealthResponse.SerializeToString
                ),
                "Generate": grpc.stream_stream_rpc_method_handler(
                    self.generate, pb.GenerateRequest.FromString, pb.StepEvents.SerializeToString
                ),
            },
        )

    # ``Any``: grpc ships no types; a context is a grpc.aio.ServicerContext.
    async def info(self, _request: pb.InfoRequest, context: Any) -> pb.InfoResponse:
        try:
            return encode_info(self._source.info)
        except NeuronTgiError as error:
            await context.abort(status_code(error), str(error))
            raise  # abort has raised already

    async def health(self, _request: pb.HealthRequest, _context: Any) -> pb.HealthResponse:
        return encode_status(self._source.status)

    async def generate(self, _requests: AsyncIterator[pb.GenerateRequest], context: Any) -> None:
        await _Call(self._source, context).run()


class _Call:
    """One ``Generate`` call: a reader that submits and cancels, and this task, which writes steps."""

    def __init__(self, source: SessionSource, context: Any) -> None:
        self._source = source
        self._session = source.open_session()
        self._context = context
        self._open: set[int] = set()
        self._writing = asyncio.Lock()  # gRPC takes one write of a call at a time
        self._half_closed = False

    async def run(self) -> None:
        """Until the client half-closes and nothing is open, the source ends, or the call is cancelled."""
        reader = asyncio.create_task(self._read())
        try:
            async for step in self._session.steps():
                await self._send(step)
                if self._half_closed and not self._open:
                    break
            if reader.done():
                reader.result()  # what made the reader fail makes the call fail
        finally:
            self._session.close()
            reader.cancel()

    async def _read(self) -> None:
        try:
            while (message := await self._context.read()) is not grpc.aio.EOF:
                if message.WhichOneof("message") == "submit":
                    await self._submit(message.submit)
                elif message.WhichOneof("message") == "cancel":
                    self._cancel(message.cancel.request_id)
        except BaseException:
            self._session.close()
            raise
        self._half_closed = True
        if not self._open:
            self._session.close()

    async def _submit(self, submit: pb.Submit) -> None:
        request_id = submit.request_id
        try:
            if request_id in self._open:
                self._cancel(request_id)
                raise ValidationError(f"request_id {request_id} is open already; both requests end here")
            request = decode_submit(submit)
            submission.check(request, self._source.info, approximate_top_p=True)  # the source decides that
        except NeuronTgiError as error:
            now = self._source.status
            await self._send(Step((), ((request_id, error),), now.free_slots, now.queued))
            return
        self._open.add(request_id)
        self._session.submit(request_id, request)

    def _cancel(self, request_id: int) -> None:
        self._open.discard(request_id)
        self._session.cancel(request_id)

    async def _send(self, step: Step) -> None:
        self._open.difference_update(of for of, event in step.tokens if event.finish is not None)
        self._open.difference_update(of for of, _ in step.errors)
        async with self._writing:
            await self._context.write(encode_step(step))
