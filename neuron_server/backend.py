"""The static-shape contract between the engine and whatever computes logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from neuron_server.shape import StaticShape

PrefillMode = Literal["insert", "rebuild"]
OutputKind = Literal["logits", "candidates", "tokens"]


@dataclass(frozen=True, slots=True)
class DeviceSampling:
    """How a backend that hands over tokens chooses one for a row; greedy is (1, 1.0, 1.0).

    1 <= ``top_k`` <= ``BackendInfo.max_top_k``, 0 < ``top_p`` <= 1, ``temperature`` > 0. A device has no
    "off" for top_k: ``max_top_k`` is the widest it can do.
    """

    top_k: int = 1
    top_p: float = 1.0
    temperature: float = 1.0


GREEDY = DeviceSampling()


@dataclass(frozen=True, slots=True)
class PrefillRow:
    """``tokens`` (all that the slot shall hold) for ``slot``; ``prompt_logprobs`` asks to score them too.

    ``sampling`` counts only where ``BackendInfo.output`` is ``tokens``.
    """

    slot: int
    tokens: Sequence[int]
    prompt_logprobs: bool = False
    sampling: DeviceSampling = GREEDY


@dataclass(frozen=True, slots=True)
class DecodeRow:
    """``token`` enters ``slot`` at ``position``, the number of tokens the slot already holds.

    ``sampling`` counts only where ``BackendInfo.output`` is ``tokens``.
    """

    slot: int
    token: int
    position: int
    sampling: DeviceSampling = GREEDY


@dataclass(frozen=True, slots=True)
class Output:
    """Next-token logits of each row, in the caller's order; or the tokens that the device chose from them.

    ``logits`` float32 (n, V), valid until the next call of the backend; the caller may write to it. Where
    ``BackendInfo.output`` is ``tokens`` they stay on the device: ``logits`` is (n, 0), and ``tokens`` holds
    the next token of each row.
    ``prompt_logprobs[i]``, where row i asked for it: float32 (len(tokens) - 1,), the natural log-probability
    of tokens 1 .. of the row given those before it. ``positions``: how many token positions the forward
    computed for these rows, padding included (a compiled graph computes all it has); 0 where unknown.
    """

    logits: npt.NDArray[np.float32]  # (n, V)
    prompt_logprobs: Sequence[npt.NDArray[np.float32] | None] = ()
    positions: int = 0
    tokens: npt.NDArray[np.int64] | None = None  # (n,)


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """What is constant after load.

    ``max_prompt_tokens`` (C): the longest prefill, 1 <= C <= T - 1 (in *rebuild* mode, the longest client
    prompt: histories up to T - 1 tokens must be accepted). ``prefill_mode``: see ``Backend.prefill``.
    ``output``: what ``prefill`` and ``decode`` return (``candidates`` is for a later backend).
    ``can_score_prompt``: whether ``prompt_logprobs`` are computed; where not, the rows' wish is ignored and
    the answer ``None``. ``max_top_k``: the most candidates that sampling on the device considers; 0 where
    ``output`` is ``logits``.
    """

    shape: StaticShape
    max_prompt_tokens: int
    vocab_size: int
    prefill_mode: PrefillMode = "insert"
    output: OutputKind = "logits"
    dtype: str = "float32"
    device: str = "cpu"
    can_score_prompt: bool = False
    max_top_k: int = 0

    @property
    def samples(self) -> bool:
        """Whether the device chooses the tokens: no log-probabilities, seeds, penalties or grammars."""
        return self.output == "tokens"


class Backend(Protocol):
    """One static batch on one device. One call at a time, all of them from the thread that loaded it.

    A slot is *live* from the call that fills it until ``release``. Everything wrong is refused before device
    work with a ``BackendError``; padding, padding side, buckets and masks never leave the backend. A failure
    of the device raises ``DeviceFailedError``; after it the backend is dead and its process exits.

    The rules exist because real devices corrupt silently. With optimum-neuron 0.4.5 a live slot left out of a
    decode gets a garbage write, and so does every other slot when a one-token prompt is prefilled alone.
    """

    @property
    def info(self) -> BackendInfo:
        """Constant after load."""
        ...

    def prefill(self, rows: Sequence[PrefillRow]) -> Output:
        """Fill slots and return the logits after the last token of each row.

        ``insert``: the named slots must be free; afterwards they are live and hold exactly their tokens, and
        all other live slots are unchanged. Rows have 2 .. C tokens. ``rebuild``: the rows must hold **every**
        slot that is to stay live, with full history (1 .. T - 1 tokens, the pending one excluded); the
        previous live set is dropped. The caller ignores the outputs of rows that were already running.
        """
        ...

    def decode(self, rows: Sequence[DecodeRow]) -> Output:
        """One step of **exactly all** live slots, and of any free slots that start at position 0.

        A free slot named with position 0 becomes live: a one-token prompt enters here, never through an
        inserting prefill.
        """
        ...

    def release(self, slots: Sequence[int]) -> None:
        """Make live slots free. No device work."""
        ...

    def close(self) -> None:
        """Give the device back. Idempotent."""
        ...
