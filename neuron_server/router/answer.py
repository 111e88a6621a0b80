"""What the service yields for a generation, and the whole answer as a fold of it."""

from __future__ import annotations

from collections.abc import AsyncIterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from neuron_server.errors import IncompleteGenerationError
from neuron_server.event import FinishReason


class Token(NamedTuple):
    """One token as clients see it. ``logprob`` in nats, ``None`` when it was not computed."""

    id: int
    text: str
    logprob: float | None
    special: bool = False


class Timings(NamedTuple):
    """Seconds: from the handler's start to the end, of which validating, queueing, and prefill to end."""

    total_s: float
    validation_s: float
    queue_s: float
    inference_s: float


@dataclass(frozen=True, slots=True)
class Ending:
    """What only the last piece knows. ``seed`` is ``None`` when the generation did not sample."""

    generated_text: str
    finish_reason: FinishReason
    generated_tokens: int
    seed: int | None
    input_length: int
    timings: Timings

    @property
    def time_per_token_s(self) -> float:
        """Inference time of each generated token, on average."""
        return self.timings.inference_s / max(self.generated_tokens, 1)


class Piece(NamedTuple):
    """One new token; ``prefill`` (scored prompt tokens) on the first, ``ending`` on the last."""

    token: Token
    top_tokens: Sequence[Token] = ()
    prefill: Sequence[Token] = ()
    ending: Ending | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished generation."""

    tokens: Sequence[Token]
    top_tokens: Sequence[Sequence[Token]]
    prefill: Sequence[Token]
    ending: Ending

    @property
    def mean_logprob(self) -> float:
        """What best_of ranks by; a token without log-probability makes it minus infinity."""
        logprobs = [token.logprob for token in self.tokens]
        known = [logprob for logprob in logprobs if logprob is not None]
        return sum(known) / len(known) if known and len(known) == len(logprobs) else float("-inf")


async def fold(pieces: AsyncIterable[Piece]) -> Answer:
    """The whole answer of a stream. Raises what the stream raises."""
    tokens: list[Token] = []
    top_tokens: list[Sequence[Token]] = []
    prefill: Sequence[Token] = ()
    async for piece in pieces:
        tokens.append(piece.token)
        top_tokens.append(piece.top_tokens)
        prefill = prefill or piece.prefill
        if piece.ending is not None:
            return Answer(tokens, top_tokens if any(top_tokens) else [], prefill, piece.ending)
    raise IncompleteGenerationError("the stream ended without a last token")
