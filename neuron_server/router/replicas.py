"""One ``TokenSource`` over all replicas, which outlives any of their generators."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from neuron_server.backend import BackendInfo
from neuron_server.errors import (
    GenerationError,
    GeneratorLostError,
    IncompleteGenerationError,
    UnavailableError,
)
from neuron_server.event import TokenEvent, TokenSource
from neuron_server.request import GenerationRequest
from neuron_server.session import Phase, Status
from neuron_server.tracing import NO_TRACER, Tracer
from neuron_server.wire.client import LOST
from neuron_server.wire.spans import submission

logger = logging.getLogger(__name__)

#: How long a request waits for a generator to come (back) before it fails.
RESTART_WAIT_S = 60.0

#: How often a request is given to another generator. One that still loses its generator may be the reason.
MAX_RESUBMISSIONS = 2

#: Pause before a replica that called itself ready and was not is asked again.
_RETRY_S = 0.05

_PHASES = (Phase.READY, Phase.WARMING_UP, Phase.LOADING, Phase.FAILED)


class Replica(TokenSource, Protocol):
    """One generator as the router sees it (``wire.client.GeneratorClient``).

    ``stream`` raises ``UnavailableError`` when it is not ready, ``GeneratorLostError`` when it is lost.
    ``silent``: it was ready and has left the last question after its health without an answer.
    """

    @property
    def status(self) -> Status: ...

    @property
    def info(self) -> BackendInfo: ...

    @property
    def open_requests(self) -> int: ...

    @property
    def silent(self) -> bool: ...

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def wait_ready(self) -> None: ...


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """One replica for whoever operates it. ``phase``: a ``Phase``'s word, ``not answering`` or ``lost``.

    ``not answering``: it was ready a moment ago and gets no new requests until it answers again. ``lost``: it
    was ready, and nobody is there now. The numbers are 0 unless it is up, which is to take requests.
    """

    rank: int
    phase: str
    free_slots: int = 0
    queued: int = 0

    @property
    def up(self) -> bool:
        """Whether it gets requests."""
        return self.phase == Phase.READY.value


class Generators(TokenSource, Protocol):
    """All generators as the service sees them."""

    @property
    def phase(self) -> Phase: ...

    @property
    def info(self) -> BackendInfo | None: ...

    @property
    def queued(self) -> int: ...

    @property
    def running(self) -> int: ...

    @property
    def free_slots(self) -> int: ...

    @property
    def states(self) -> Sequence[ReplicaState]: ...


class ReplicaSet:
    """A ``TokenSource`` over replicas: the one with most free slots takes the next request.

    Slots are what there is too little of, so a turn-taking choice would queue behind a full replica while
    another one has room. Of equals, the one that was not chosen for longest is taken.

    A request whose generator is lost is submitted again, with the tokens it has, to another replica or to the
    restarted one. Draws depend on the seed and the token's index only, so it continues exactly (where the
    device draws, with draws of its own); its client sees a pause. Each submission is a span of its own, below
    the one that the request names.
    """

    def __init__(
        self,
        replicas: Sequence[Replica],
        *,
        restart_wait_s: float = RESTART_WAIT_S,
        tracer: Tracer = NO_TRACER,
        on_resubmit: Callable[[], None] = lambda: None,
    ) -> None:
        if not replicas:
            raise ValueError("at least one replica is needed")
        self._replicas = tuple(replicas)
        self._restart_wait_s = restart_wait_s
        self._tracer = tracer
        self._on_resubmit = on_resubmit
        self._waiting = 0
        self._choices = 0
        self._chosen = dict.fromkeys(self._replicas, 0)
        self._closing = asyncio.Event()

    async def start(self) -> None:
        """Start every replica's connection; returns at once."""
        for one in self._replicas:
            await one.start()

    async def close(self) -> None:
        """Close every connection; streams that are open end with ``UnavailableError``. Idempotent."""
        self._closing.set()
        for one in self._replicas:
            await one.close()

    async def wait_ready(self) -> None:
        """Until one replica at least can serve; without bound. ``UnavailableError`` when closed."""
        while not self._ready():
            self._refuse_if_closed()
            await self._any_ready(None)

    # -- state -----------------------------------------------------------------------------------------------

    @property
    def phase(self) -> Phase:
        """The phase of the replica that is furthest."""
        return min((one.status.phase for one in self._replicas), key=_PHASES.index)

    @property
    def info(self) -> BackendInfo | None:
        """What the first replica that was ever ready said; ``None`` before that."""
        for one in self._replicas:
            with contextlib.suppress(UnavailableError):
                return one.info
        return None

    @property
    def queued(self) -> int:
        """Requests that wait for a slot, in all generators, or for a generator."""
        return self._waiting + sum(one.status.queued for one in self._ready())

    @property
    def running(self) -> int:
        """Occupied slots, in all generators."""
        return sum(one.info.shape.batch_size - one.status.free_slots for one in self._ready())

    @property
    def free_slots(self) -> int:
        """Slots without a request, in all generators."""
        return sum(one.status.free_slots for one in self._ready())

    @property
    def states(self) -> Sequence[ReplicaState]:
        """Each replica, rank 0 first."""
        return [_state(rank, one) for rank, one in enumerate(self._replicas)]

    def _ready(self) -> list[Replica]:
        return [one for one in self._replicas if one.status.phase is Phase.READY]

    # -- the call shape --------------------------------------------------------------------------------------

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        """See ``TokenSource``. ``GenerationError`` when it gives up, ``UnavailableError`` when closed."""
        tokens: list[int] = []
        losses, lost = 0, None
        deadline_s = time.monotonic() + self._restart_wait_s
        while True:
            replica = await self._choose(deadline_s)
            resumed = _resumed(request, tokens)
            try:
                async with self._submitted(replica, resumed, lost) as events:
                    async for event in events:
                        if losses and tokens:  # the client has had the first event of the first submission
                            event = replace(event, queue_s=None, prompt_logprobs=None)
                        tokens.append(event.token_id)
                        yield event
                        if event.finish is not None:
                            return
                raise IncompleteGenerationError("the generator ended the request without a last token")
            except UnavailableError:  # it was lost between the choice and the call
                await asyncio.sleep(_RETRY_S)
            except GeneratorLostError as error:
                losses, lost = losses + 1, error
                deadline_s = time.monotonic() + self._restart_wait_s
                if losses > MAX_RESUBMISSIONS:
                    raise GenerationError(
                        f"the generator was lost {losses} times under this request ({error}); giving it up"
                    ) from error
                if not self._closing.is_set():
                    self._on_resubmit()
                    logger.warning("resubmitting a request after %d tokens: %s", len(tokens), error)

    @contextlib.asynccontextmanager
    async def _submitted(
        self, replica: Replica, request: GenerationRequest, lost: GeneratorLostError | None
    ) -> AsyncIterator[AsyncGenerator[TokenEvent, None]]:
        """The events of one submission, within its span."""
        with submission(self._tracer, request, lost) as span:
            request = replace(request, traceparent=span.traceparent)
            async with contextlib.aclosing(replica.stream(request)) as events:
                yield events

    async def _choose(self, deadline_s: float) -> Replica:
        """The ready replica with most free slots that answers; waits for one if none is ready."""
        while (left_s := deadline_s - time.monotonic()) > 0:
            self._refuse_if_closed()
            if ready := self._ready():
                # A silent one may be lost in some seconds: better to wait for a slot than for that.
                best = max(
                    [one for one in ready if not one.silent] or ready,
                    key=lambda one: (_free(one), -self._chosen[one]),
                )
                self._choices += 1
                self._chosen[best] = self._choices
                return best
            self._waiting += 1
            try:
                await self._any_ready(left_s)
            finally:
                self._waiting -= 1
        raise GeneratorLostError(f"no generator came back within {self._restart_wait_s:g} s")

    def _refuse_if_closed(self) -> None:
        if self._closing.is_set():
            raise UnavailableError("The server was stopped before this request was finished")

    async def _any_ready(self, timeout_s: float | None) -> None:
        """Until a replica says that it is ready, the set is closed, or ``timeout_s`` have passed."""
        waits: list[asyncio.Future[object]] = [
            asyncio.ensure_future(wait)
            for wait in (self._closing.wait(), *(one.wait_ready() for one in self._replicas))
        ]
        try:
            await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()


def _state(rank: int, replica: Replica) -> ReplicaState:
    status = replica.status
    if status.phase is Phase.READY and not replica.silent:
        return ReplicaState(rank, status.phase.value, status.free_slots, status.queued)
    if status.phase is Phase.READY:
        return ReplicaState(rank, "not answering")
    lost = status.phase is Phase.LOADING and status.detail.startswith(LOST)
    return ReplicaState(rank, LOST if lost else status.phase.value)


def _free(replica: Replica) -> int:
    """Slots that nothing of ours will fill; negative when requests wait already.

    Counted from what this router has open there: several choices may fall between two steps, and the
    generator's own word is only as new as its last one.
    """
    return replica.info.shape.batch_size - replica.open_requests


def _resumed(request: GenerationRequest, tokens: Sequence[int]) -> GenerationRequest:
    """``request`` with the tokens it has got so far."""
    if not tokens:
        return request
    return replace(
        request,
        input_ids=(*request.input_ids, *tokens),
        max_new_tokens=request.max_new_tokens - len(tokens),
        prompt_logprobs=False,
    )
