"""The one thread that touches the backend: it loads, warms up and runs the batch. Outside is asyncio."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from neuron_server.backend import Backend, BackendInfo
from neuron_server.engine.batcher import Batcher
from neuron_server.engine.constraining import Constraining
from neuron_server.engine.engine import Outcome
from neuron_server.engine.loop_session import LoopSession, Ticket
from neuron_server.engine.schedule import Policy
from neuron_server.engine.warmup import warm_up
from neuron_server.errors import DeviceFailedError, GenerationError, NeuronTgiError, UnavailableError
from neuron_server.event import TokenEvent
from neuron_server.grammar import Compile, Constraint
from neuron_server.request import GenerationRequest
from neuron_server.session import Pass, Phase, Status

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Submit:
    ticket: Ticket
    request: GenerationRequest
    submitted_at: float
    constraint: Constraint | None = None


@dataclass(frozen=True, slots=True)
class _Cancel:
    tickets: list[Ticket]


_Command = _Submit | _Cancel | None  # None only wakes the thread


class EngineLoop:
    """A ``SessionSource`` and ``TokenSource`` on one backend.

    ``load`` is called on the loop's own thread, as is everything else that touches the backend: a second
    compute thread would mean a second team of OpenMP threads. Methods are called on the asyncio thread and
    never wait for the device. ``on_fatal`` is called there, once, when loading fails or
    the device dies, after every open request has got its error. ``compile`` makes the constraints of
    requests with a grammar before they are queued; without it they are refused. ``approximate_top_p`` as in
    ``device_sampling``.
    """

    def __init__(
        self,
        load: Callable[[], Backend],
        policy: Policy | None = None,
        *,
        compile: Compile | None = None,  # noqa: A002 - the word of the contract
        on_fatal: Callable[[BaseException], None] | None = None,
        approximate_top_p: bool = False,
    ) -> None:
        self._load = load
        self._approximate_top_p = approximate_top_p
        self._policy = policy or Policy()
        self._on_fatal = on_fatal
        self._commands: SimpleQueue[_Command] = SimpleQueue()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._passes: list[Pass] = []  # touched on that thread only: those not yet posted
        # Below: touched on the asyncio thread only.
        self._asyncio: asyncio.AbstractEventLoop
        self._phase = Phase.LOADING
        self._detail = ""
        self._info: BackendInfo | None = None
        self._free_slots = 0
        self._sessions: set[LoopSession] = set()
        self._tickets: set[Ticket] = set()
        self._constraining = Constraining(compile)
        self._fatal: BaseException | None = None
        self._closing = False
        self._settled = asyncio.Event()
        self._thread_ended = asyncio.Event()

    # -- the asyncio thread ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Start loading. Called once, with a running asyncio loop, which gets all results."""
        self._asyncio = asyncio.get_running_loop()
        self._thread.start()

    async def ready(self) -> None:
        """Return when requests can run. Raises what loading or warming up raised, or ``UnavailableError``."""
        await self._settled.wait()
        if self._fatal is not None:
            raise self._fatal
        if self._closing:
            raise UnavailableError("the generator is shutting down")

    async def close(self, timeout_s: float = 30.0) -> None:
        """Stop after the current call of the backend and give the device back. Idempotent.

        Open requests get an ``UnavailableError``. A call that hangs is left behind after ``timeout_s``: the
        thread is a daemon and does not keep the process alive.
        """
        if not self._closing:
            self._closing = True
            self._stop.set()
            self._commands.put(None)
            self._fail_all(lambda: UnavailableError("the generator is shutting down"))
            for session in self._sessions:
                session.end()
            self._settled.set()
        if self._thread.ident is None:
            return
        try:
            await asyncio.wait_for(self._thread_ended.wait(), timeout_s)
        except asyncio.TimeoutError:
            logger.error("the backend has not answered for %.0f s; leaving its thread behind", timeout_s)
        else:
            self._thread.join()  # its last act was to say that it has ended

    @property
    def info(self) -> BackendInfo:
        """What is constant about the backend. Raises ``UnavailableError`` unless the phase is ``READY``."""
        if self._info is None or self._phase is not Phase.READY:
            raise UnavailableError(f"the generator is not ready: {self._detail or self._phase.value}")
        return self._info

    @property
    def status(self) -> Status:
        """A snapshot. Requests that the engine has not placed yet count as queued."""
        running = self._info.shape.batch_size - self._free_slots if self._info else 0
        queued = max(0, len(self._tickets) - running)
        return Status(self._phase, self._free_slots, queued, self._detail)

    def open_session(self) -> LoopSession:
        """A new, empty session. Before ``READY`` its requests wait; after a failure they get an error."""
        session = LoopSession(self)
        self._sessions.add(session)
        return session

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        """Yield one request's events; closing the generator frees what it held before the next decode."""
        session = self.open_session()
        try:
            session.submit(0, request)
            async for step in session.steps():
                for _, event in step.tokens:
                    yield event
                    if event.finish is not None:
                        return
                for _, error in step.errors:
                    raise error
        finally:
            session.close()

    # -- for its sessions ------------------------------------------------------------------------------------

    def enqueue(self, ticket: Ticket, request: GenerationRequest) -> None:
        """Hand a request to the engine's thread, or answer it at once when that is gone."""
        if self._phase is Phase.FAILED:
            ticket.session.fail(ticket, self._failure())
        elif self._closing:
            ticket.session.fail(ticket, UnavailableError("the generator is shutting down"))
        else:
            self._tickets.add(ticket)
            self._submit(ticket, request)

    def _submit(self, ticket: Ticket, request: GenerationRequest) -> None:
        submitted_at = time.perf_counter()
        if request.grammar is None:
            self._commands.put(_Submit(ticket, request, submitted_at))
            return

        def then(compiled: Constraint | NeuronTgiError) -> None:
            if isinstance(compiled, NeuronTgiError):
                self._tickets.discard(ticket)
                ticket.session.fail(ticket, compiled)
            else:
                self._commands.put(_Submit(ticket, request, submitted_at, compiled))

        self._constraining.begin(ticket, request, request.grammar, then)

    def withdraw(self, tickets: list[Ticket]) -> None:
        """Take requests back; those that are over are ignored."""
        known = [ticket for ticket in tickets if ticket in self._tickets]
        if known:
            self._tickets.difference_update(known)
            self._constraining.drop(known)
            self._commands.put(_Cancel(known))

    def forget(self, session: LoopSession) -> None:
        """The session is closed."""
        self._sessions.discard(session)

    # -- results, handed over from the thread ----------------------------------------------------------------

    def _on_warming_up(self) -> None:
        self._phase = Phase.WARMING_UP

    def _on_ready(self, info: BackendInfo) -> None:
        self._phase, self._info, self._free_slots = Phase.READY, info, info.shape.batch_size
        self._settled.set()

    def _on_outcome(self, outcome: Outcome[Ticket], free_slots: int, passes: list[Pass]) -> None:
        self._free_slots = free_slots
        self._tell(passes)
        for ticket, event in outcome.tokens:
            if event.finish is not None:
                self._tickets.discard(ticket)
            ticket.session.add(ticket, event)
        for ticket, error in outcome.errors:
            self._tickets.discard(ticket)
            ticket.session.fail(ticket, error)

    def _tell(self, passes: list[Pass]) -> None:
        """Every session learns of every pass: each router shows the whole device, not its part of it."""
        idle = self._info is not None and self._free_slots == self._info.shape.batch_size
        for session in self._sessions:
            session.measured(passes, now=idle)

    def _on_failure(self, error: BaseException, passes: list[Pass]) -> None:
        self._phase, self._fatal, self._free_slots = Phase.FAILED, error, 0
        self._detail = str(error) if isinstance(error, NeuronTgiError) else f"{type(error).__name__}: {error}"
        self._tell(passes)
        self._fail_all(self._failure)
        self._settled.set()
        if self._on_fatal is not None and not self._closing:
            self._on_fatal(error)

    def _failure(self) -> NeuronTgiError:
        """A dead device says so by its type: its requests can be resumed elsewhere."""
        kind = DeviceFailedError if isinstance(self._fatal, DeviceFailedError) else GenerationError
        return kind(self._detail)

    def _fail_all(self, error: Callable[[], NeuronTgiError]) -> None:
        tickets, self._tickets = self._tickets, set()
        self._constraining.drop(tickets)
        for ticket in tickets:
            ticket.session.fail(ticket, error())

    # -- the engine's thread ---------------------------------------------------------------------------------

    def _run(self) -> None:
        backend: Backend | None = None
        try:
            backend = self._load()
            if not self._stop.is_set():
                self._post(self._on_warming_up)
                warm_up(backend)
                self._post(self._on_ready, backend.info)
                top_p = self._approximate_top_p
                self._serve(
                    Batcher(backend, self._policy, on_pass=self._passes.append, approximate_top_p=top_p)
                )
        except BaseException as error:  # the thread's edge: nothing may end it in silence
            # What was raised on purpose says it all in its sentence, which the program logs.
            if not isinstance(error, NeuronTgiError):
                logger.error("the engine has failed", exc_info=error)
            self._post(self._on_failure, error, self._take_passes())
        finally:
            if backend is not None:
                self._give_back(backend)
            self._post(self._thread_ended.set)

    def _serve(self, batcher: Batcher[Ticket]) -> None:
        """Turn after turn; commands take effect between any two calls of the backend."""
        while not self._stop.is_set():
            self._obey(batcher)
            for outcome in batcher.turn():
                self._post(self._on_outcome, outcome, batcher.free_slots, self._take_passes())
                self._obey(batcher)
                if self._stop.is_set():
                    return

    def _obey(self, batcher: Batcher[Ticket]) -> None:
        """Take all commands that are there; sleep until there is one when there is nothing else to do."""
        free_before = batcher.free_slots
        refused: Outcome[Ticket] = Outcome()
        while not self._stop.is_set():
            news = bool(refused.errors) or batcher.free_slots != free_before
            try:
                command = self._commands.get(block=batcher.idle and not news)
            except Empty:
                break
            if isinstance(command, _Submit):
                try:
                    batcher.submit(command.ticket, command.request, command.submitted_at, command.constraint)
                except NeuronTgiError as error:
                    refused.errors.append((command.ticket, error))
            elif command is not None:
                for ticket in command.tickets:
                    batcher.cancel(ticket)
        if refused.errors or batcher.free_slots != free_before:
            self._post(self._on_outcome, refused, batcher.free_slots, self._take_passes())

    def _take_passes(self) -> list[Pass]:
        taken = self._passes[:]
        self._passes.clear()
        return taken

    def _give_back(self, backend: Backend) -> None:
        try:
            backend.close()
        except Exception:  # a dead device may well refuse; the process ends anyway
            logger.exception("the backend did not close")

    def _post(self, callback: Callable[..., None], *args: object) -> None:
        """Run ``callback`` on the asyncio thread; dropped when its loop is closed: nobody listens."""
        with suppress(RuntimeError):
            self._asyncio.call_soon_threadsafe(callback, *args)
