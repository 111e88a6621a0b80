"""The asyncio end of one connection: what it has open, and what has happened to it since it last looked."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from neuron_server.errors import NeuronTgiError, ValidationError
from neuron_server.event import TokenEvent
from neuron_server.request import GenerationRequest
from neuron_server.session import Pass, Status, Step

#: So many passes that none of the session's requests took part in make a step of their own.
PASSES_PER_STEP = 64
#: A consumer that fetches nothing loses the oldest of more than these.
MAX_PASSES = 4096


class Ticket:
    """One submission. Its identity is its name, so a late event never reaches a reused request id."""

    __slots__ = ("request_id", "session")

    def __init__(self, session: LoopSession, request_id: int) -> None:
        self.session = session
        self.request_id = request_id


class Host(Protocol):
    """What a session needs of the loop; all of it returns at once."""

    @property
    def status(self) -> Status:
        """Phase and occupancy now."""
        ...

    def enqueue(self, ticket: Ticket, request: GenerationRequest) -> None:
        """Hand a request to the engine, or answer it with an error."""
        ...

    def withdraw(self, tickets: list[Ticket]) -> None:
        """Take requests back."""
        ...

    def forget(self, session: LoopSession) -> None:
        """The session is closed."""
        ...


class LoopSession:
    """A ``Session`` of the engine loop; everything happens on the asyncio thread.

    What a slow consumer has not fetched is merged into its next ``Step`` instead of piling up as items.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._open: dict[int, Ticket] = {}
        self._tokens: list[tuple[int, TokenEvent]] = []
        self._errors: list[tuple[int, NeuronTgiError]] = []
        self._passes: deque[Pass] = deque(maxlen=MAX_PASSES)
        self._due = False
        self._wake = asyncio.Event()
        self._ended = False

    def submit(self, request_id: int, request: GenerationRequest) -> None:
        """Queue a request; errors arrive in a step. An id that is still open ends both of its requests."""
        if self._ended:
            return
        taken = self._open.get(request_id)
        ticket = self._open[request_id] = Ticket(self, request_id)
        if taken is not None:
            self._host.withdraw([taken])
            self.fail(ticket, ValidationError(f"request_id {request_id} is still open on this stream"))
            return
        self._host.enqueue(ticket, request)

    def cancel(self, request_id: int) -> None:
        """Free what the request holds before the next decode step; nothing of it arrives any more."""
        ticket = self._open.pop(request_id, None)
        if ticket is not None:
            self._tokens = [item for item in self._tokens if item[0] != request_id]
            self._host.withdraw([ticket])

    async def steps(self) -> AsyncIterator[Step]:
        """One item per step that made something for this session, or several merged; for one consumer.

        Passes that made nothing for it come with the next item, or in one of their own when many have
        gathered or the batch has emptied.
        """
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._tokens or self._errors or self._due:
                tokens, self._tokens = self._tokens, []
                errors, self._errors = self._errors, []
                passes, self._due = tuple(self._passes), False
                self._passes.clear()
                status = self._host.status
                yield Step(tuple(tokens), tuple(errors), status.free_slots, status.queued, passes)
            elif self._ended:
                return
            if self._ended:
                self._wake.set()

    def close(self) -> None:
        """Cancel everything still open, drop what was not fetched, end ``steps``."""
        if not self._ended:
            self._host.withdraw(list(self._open.values()))
            self._open.clear()
            self._tokens, self._errors, self._due = [], [], False
            self._host.forget(self)
            self.end()

    # -- called by the loop ----------------------------------------------------------------------------------

    def add(self, ticket: Ticket, event: TokenEvent) -> None:
        """One event of a request; dropped if it was cancelled meanwhile."""
        if self._open.get(ticket.request_id) is ticket:
            self._tokens.append((ticket.request_id, event))
            if event.finish is not None:
                del self._open[ticket.request_id]
            self._wake.set()

    def fail(self, ticket: Ticket, error: NeuronTgiError) -> None:
        """The request is over."""
        if self._open.get(ticket.request_id) is ticket:
            del self._open[ticket.request_id]
            self._errors.append((ticket.request_id, error))
            self._wake.set()

    def measured(self, passes: Sequence[Pass], *, now: bool) -> None:
        """Passes of the batch; ``now``: nothing may follow that they could go with."""
        self._passes.extend(passes)
        if self._passes and (now or len(self._passes) >= PASSES_PER_STEP):
            self._due = True
            self._wake.set()

    def end(self) -> None:
        """No more steps but those that are waiting to be fetched."""
        self._ended = True
        self._wake.set()
