"""What comes back up: one event per new token, and the one call shape that yields them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from neuron_server.request import GenerationRequest


class FinishReason(str, Enum):
    """Why a generation ended, with TGI's names."""

    LENGTH = "length"
    EOS_TOKEN = "eos_token"  # noqa: S105 not a password
    STOP_SEQUENCE = "stop_sequence"


@dataclass(frozen=True, slots=True)
class TopToken:
    """One of the likeliest tokens of a step; ``logprob`` in nats."""

    token_id: int
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One new token of one request.

    ``logprob`` (nats, of the distribution after penalties and warpers, as TGI reports it) is ``None`` when
    the backend did not compute it. Only the last event carries ``finish``. Only the first event after a
    submission carries ``queue_s`` (seconds between submission and the start of the prefill) and, if asked
    for and available, ``prompt_logprobs`` (one per prompt token, the first ``None``).
    """

    token_id: int
    logprob: float | None = None
    top_tokens: tuple[TopToken, ...] = ()
    finish: FinishReason | None = None
    queue_s: float | None = None
    prompt_logprobs: tuple[float | None, ...] | None = None


class TokenSource(Protocol):
    """The one call shape: the engine loop, the gRPC client and the replica set all have it."""

    def stream(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        """Yield the request's events in order; the last carries ``finish``.

        Closing the generator (``aclose``) frees what the request held, before the next decode step. Raises
        an error of ``errors.py`` (``GenerationError`` and below) when the backend fails; never hangs.
        """
        ...
