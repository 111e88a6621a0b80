"""One occupied row of the static batch. A free row is ``None``; there is no third state."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from neuron_server.backend import GREEDY, DeviceSampling
from neuron_server.engine.penalty import TokenCounts, has_penalty
from neuron_server.engine.sampling import SampleRow
from neuron_server.engine.warp import Choice
from neuron_server.event import FinishReason, TokenEvent
from neuron_server.grammar import Constraint
from neuron_server.request import GenerationRequest

#: Names a request; chosen by whoever places it.
Key = TypeVar("Key", bound=Hashable)


@dataclass(slots=True)
class Slot(Generic[Key]):
    """A request in its row.

    ``tokens`` is everything known: prompt, what was generated before and here. The backend holds the first
    ``held`` of them, so ``tokens[held]`` is the pending one. A row whose pending token is not its last is
    catching up: it feeds known tokens, one a step, and makes no events. The ``constraint`` stands after
    ``tokens``: after all that was generated, here and before. ``sampling`` is for a device that samples.
    """

    key: Key
    request: GenerationRequest
    queue_s: float | None = None
    prompt_logprobs: tuple[float | None, ...] | None = None
    constraint: Constraint | None = None
    sampling: DeviceSampling = GREEDY
    held: int = 0
    tokens: list[int] = field(init=False)
    counts: TokenCounts | None = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = list(self.request.input_ids)
        self.counts = TokenCounts(self.tokens) if has_penalty(self.request.sampling) else None

    @property
    def live(self) -> bool:
        """The backend holds something of it. False only until a first decode at position 0."""
        return self.held > 0

    @property
    def due(self) -> bool:
        """The backend holds every known token, so its logits are those of a new one."""
        return self.held == len(self.tokens)

    def sample_row(self) -> SampleRow:
        """How the next token of this row is chosen."""
        index = len(self.tokens) - self.request.prompt_length
        return SampleRow(self.request.sampling, index, self.counts, self.constraint)

    def accept(self, choice: Choice) -> TokenEvent:
        """Append the chosen token and make its event; the first one carries what only the first carries.

        Raises ``ValueError`` for a token that the constraint does not allow.
        """
        self.tokens.append(choice.token_id)
        if self.counts is not None:
            self.counts.add(choice.token_id)
        event = TokenEvent(
            token_id=choice.token_id,
            logprob=choice.logprob,
            top_tokens=choice.top_tokens,
            finish=self._finish(choice.token_id),
            queue_s=self.queue_s,
            prompt_logprobs=self.prompt_logprobs,
        )
        if self.constraint is not None and event.finish is None:
            self.constraint.advance(choice.token_id)
        self.queue_s = self.prompt_logprobs = None
        return event

    def _finish(self, token: int) -> FinishReason | None:
        """TGI's order: an end-of-text token that is also the last one allowed reports ``length``.

        A request fits its slot (``len(input_ids) + max_new_tokens <= T``), so the count also covers a full
        slot.
        """
        if len(self.tokens) - len(self.request.input_ids) >= self.request.max_new_tokens:
            return FinishReason.LENGTH
        return FinishReason.EOS_TOKEN if token in self.request.stop_ids else None
