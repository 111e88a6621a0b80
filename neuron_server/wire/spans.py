"""A generation's spans on both ends of the wire: the router's call, and what the generator does with it.

The generator's half is made from what passes by: ``TracedSource`` stands between the service and the engine
loop, so neither knows of traces, and without traces it is not there.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import grpc

from neuron_server.backend import BackendInfo
from neuron_server.errors import GeneratorLostError, NeuronTgiError
from neuron_server.event import TokenEvent
from neuron_server.request import GenerationRequest
from neuron_server.session import Session, SessionSource, Status, Step
from neuron_server.tracing import NO_SPAN, Attributes, Span, Tracer
from neuron_server.wire.codec import status_code
from neuron_server.wire.service import SERVICE

_NAME = f"/{SERVICE}/Generate"
_RPC: Attributes = {
    "rpc.system": "grpc",
    "rpc.service": SERVICE,
    "rpc.method": "Generate",
    "net.transport": "unix",
}
_STATUS = "rpc.grpc.status_code"


def submission(tracer: Tracer, request: GenerationRequest, lost: GeneratorLostError | None) -> Span:
    """The router's span of one submission; ``lost`` is why it is not the request's first."""
    if request.traceparent is None:
        return NO_SPAN
    span = tracer.start(_NAME, _RPC, traceparent=request.traceparent, kind="client")
    if lost is not None:
        span.event("resumed", {"reason": str(lost), "tokens": request.generated})
    return span


class TracedSource:
    """A ``SessionSource`` that makes a span of every request that names one, and passes everything on."""

    def __init__(self, source: SessionSource, tracer: Tracer) -> None:
        self._source = source
        self._tracer = tracer

    @property
    def info(self) -> BackendInfo:
        return self._source.info

    @property
    def status(self) -> Status:
        return self._source.status

    def open_session(self) -> Session:
        return _TracedSession(self._source.open_session(), self._tracer)


class _TracedSession:
    """One connection's requests."""

    def __init__(self, session: Session, tracer: Tracer) -> None:
        self._session = session
        self._tracer = tracer
        self._open: dict[int, _Work] = {}

    def submit(self, request_id: int, request: GenerationRequest) -> None:
        if request.traceparent is not None:
            self._open[request_id] = _Work(self._tracer, request.traceparent, request)
        self._session.submit(request_id, request)

    def cancel(self, request_id: int) -> None:
        self._cancelled(request_id)
        self._session.cancel(request_id)

    async def steps(self) -> AsyncIterator[Step]:
        async for step in self._session.steps():
            for request_id, event in step.tokens:
                work = self._open.get(request_id)
                if work is not None:
                    work.token(event)
                    if event.finish is not None:
                        del self._open[request_id]
            for request_id, error in step.errors:
                work = self._open.pop(request_id, None)
                if work is not None:
                    work.failed(error)
            yield step

    def close(self) -> None:
        for request_id in list(self._open):
            self._cancelled(request_id)
        self._session.close()

    def _cancelled(self, request_id: int) -> None:
        work = self._open.pop(request_id, None)
        if work is not None:
            work.cancelled()


class _Work:
    """One request: its span, and the times at which its first and its latest token came.

    ``prefill`` is told from the end of waiting to the first token. A request of one token needs none: it
    enters through a decode step. A resumed one longer than the prefill graph feeds its rest through decode
    steps, which count as its prefill here.
    """

    def __init__(self, tracer: Tracer, traceparent: str, request: GenerationRequest) -> None:
        self._span = tracer.start(_NAME, _RPC, traceparent=traceparent, kind="server")
        self._span.set(
            {
                "prompt_tokens": request.prompt_length,
                "resumed_tokens": request.generated,
                "max_new_tokens": request.max_new_tokens,
            }
        )
        self._prefilled = len(request.input_ids)
        self._began_s = self._submitted_s = time.monotonic()
        self._first_s = self._last_s = 0.0
        self._tokens = 0

    def token(self, event: TokenEvent) -> None:
        """Called for every token: it must stay this cheap."""
        self._last_s = time.monotonic()
        self._tokens += 1
        if self._tokens == 1:
            self._first_s = self._last_s
            self._began_s = min(self._submitted_s + (event.queue_s or 0.0), self._first_s)
        if event.finish is not None:
            self._end(grpc.StatusCode.OK, finish_reason=event.finish.value)

    def failed(self, error: NeuronTgiError) -> None:
        self._span.fail(error)
        self._end(status_code(error))

    def cancelled(self) -> None:
        """By a client that left, or a stop string, which only the router sees."""
        self._span.event("cancelled")
        self._end(grpc.StatusCode.CANCELLED)

    def _end(self, status: grpc.StatusCode, **attributes: str) -> None:
        self._span.set({_STATUS: status.value[0], "generated_tokens": self._tokens, **attributes})
        if self._tokens:
            self._tell()
        self._span.end()

    def _tell(self) -> None:
        self._span.child("queued", started_s=self._submitted_s).end(self._began_s)
        decoded, decoding_s = self._tokens, self._began_s
        if self._prefilled > 1:
            decoded, decoding_s = self._tokens - 1, self._first_s
            prefill = self._span.child("prefill", {"tokens": self._prefilled}, started_s=self._began_s)
            prefill.end(self._first_s)
        if decoded:
            self._span.child("decode", {"tokens": decoded}, started_s=decoding_s).end(self._last_s)
