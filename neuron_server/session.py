"""How one connection talks to the engine loop: sessions of many requests, one item per step.

The loop implements these protocols and the wire calls them, so neither imports the other.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import Enum
from typing import Literal, Protocol

from neuron_server.backend import BackendInfo
from neuron_server.errors import NeuronTgiError
from neuron_server.event import TokenEvent
from neuron_server.request import GenerationRequest


class Phase(str, Enum):
    """Where a generator is in its life; the value is what ``/health`` shows."""

    LOADING = "loading"
    WARMING_UP = "warming up"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Status:
    """Phase and occupancy. ``detail`` says why the phase is ``FAILED``; empty otherwise."""

    phase: Phase
    free_slots: int = 0
    queued: int = 0
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Pass:
    """One call of the backend, measured for the metrics.

    ``rows`` took part, ``joined`` of them new. ``forward_s``: inside the backend; ``sampling_s``: choosing
    the tokens. ``tokens`` were asked for and ``positions`` computed, the difference being padding (0
    positions: the backend does not say). ``stalled`` requests were running and stood still for it. ``concat``
    marks the first call of a group that joined running requests, and says with TGI's words why it could: the
    queue was long enough (``backpressure``), or had waited for long enough.
    """

    method: Literal["prefill", "decode"]
    rows: int
    joined: int = 0
    forward_s: float = 0.0
    sampling_s: float = 0.0
    tokens: int = 0
    positions: int = 0
    stalled: int = 0
    failed: bool = False
    concat: Literal["", "backpressure", "wait_exceeded"] = ""


@dataclass(frozen=True, slots=True)
class Step:
    """Everything one step (a decode, or a group of prefills) made for one session's requests.

    ``passes`` are the calls of the backend since the last step that this session was told of.
    """

    tokens: tuple[tuple[int, TokenEvent], ...] = ()
    errors: tuple[tuple[int, NeuronTgiError], ...] = ()
    free_slots: int = 0
    queued: int = 0
    passes: tuple[Pass, ...] = ()


class Session(Protocol):
    """All requests of one connection. The caller chooses ids, unique among the session's open requests."""

    def submit(self, request_id: int, request: GenerationRequest) -> None:
        """Queue a request. What is wrong with it comes back as an error of a step, never as an exception."""
        ...

    def cancel(self, request_id: int) -> None:
        """Free what the request holds before the next decode step; unknown ids are ignored."""
        ...

    def steps(self) -> AsyncIterator[Step]:
        """One item per step that made something for this session, until ``close``."""
        ...

    def close(self) -> None:
        """Cancel everything still open and end ``steps``. Idempotent."""
        ...


class SessionSource(Protocol):
    """The engine loop as the wire sees it. All methods are called on the asyncio thread and never block."""

    @property
    def info(self) -> BackendInfo:
        """Raises ``UnavailableError`` until the phase is ``READY``."""
        ...

    @property
    def status(self) -> Status:
        """A snapshot; never waits for the device."""
        ...

    def open_session(self) -> Session:
        """A new, empty session."""
        ...
