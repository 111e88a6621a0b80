"""A backend for tests whose answers depend on the whole history of a slot, and on nothing else.

It keeps what a cache would hold, token by token, refuses what the contract forbids, and writes garbage
where a device would: a slot that was left out, or prefilled wrongly, gives different tokens ever after.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from neuron_server.backend import BackendInfo, DecodeRow, Output, PrefillMode, PrefillRow
from neuron_server.engine.penalty import TokenCounts, has_penalty
from neuron_server.engine.sampling import SampleRow, sample
from neuron_server.errors import (
    DeviceFailedError,
    EmptyPromptError,
    LiveSlotOmittedError,
    OneTokenPromptError,
    PositionMismatchError,
    PositionOverflowError,
    PromptTooLongError,
    SlotBusyError,
    SlotDuplicateError,
    SlotNotLiveError,
    SlotOutOfRangeError,
    TokenOutOfRangeError,
)
from neuron_server.event import FinishReason, TokenEvent
from neuron_server.request import GenerationRequest, SamplingParams
from neuron_server.shape import StaticShape

MASK = 2**61 - 1


def history_logits(tokens: Sequence[int], vocab: int) -> np.ndarray:
    """Logits (V,) that follow from the tokens and their order."""
    state = 17
    for token in tokens:
        state = (state * 6364136223846793005 + token * 1442695040888963407 + 1) & MASK
    return (np.random.default_rng(state).standard_normal(vocab) * 3).astype(np.float32)


class ModelBackend:
    """``calls`` records every prefill and decode; the hooks run before the work of a call."""

    def __init__(
        self,
        slots: int = 4,
        length: int = 32,
        *,
        prompt: int | None = None,
        vocab: int = 50,
        mode: PrefillMode = "insert",
        score: bool = False,
        on_prefill: Callable[[Sequence[PrefillRow]], None] = lambda rows: None,
        on_decode: Callable[[Sequence[DecodeRow]], None] = lambda rows: None,
    ) -> None:
        self.info = BackendInfo(
            shape=StaticShape(slots, length),
            max_prompt_tokens=prompt or length - 1,
            vocab_size=vocab,
            prefill_mode=mode,
            can_score_prompt=score,
        )
        self.live: dict[int, list[int]] = {}
        self.calls: list[tuple[str, list[tuple[int, int]]]] = []
        self.closed = 0
        self.dead = False
        self._handed_out = np.zeros((0, vocab), np.float32)
        self.on_prefill = on_prefill
        self.on_decode = on_decode

    def prefill(self, rows: Sequence[PrefillRow]) -> Output:
        self._guard([row.slot for row in rows])
        for row in rows:
            self._guard_prefill(row)
        self.on_prefill(rows)
        self.calls.append(("prefill", [(row.slot, len(row.tokens)) for row in rows]))
        if self.info.prefill_mode == "rebuild":
            if missing := set(self.live) - {row.slot for row in rows}:
                raise LiveSlotOmittedError(f"{missing}")
            self.live.clear()
        for row in rows:
            self.live[row.slot] = list(row.tokens)
        scores = [
            self._score(row) if row.prompt_logprobs and self.info.can_score_prompt else None for row in rows
        ]
        return Output(self._logits([row.slot for row in rows]), scores)

    def decode(self, rows: Sequence[DecodeRow]) -> Output:
        self._guard([row.slot for row in rows])
        for row in rows:
            self._guard_token(row.token)
            if row.position >= self.info.shape.max_length:
                raise PositionOverflowError(f"{row}")
            if row.slot not in self.live and row.position:
                raise SlotNotLiveError(f"{row}")
            if row.position != len(self.live.get(row.slot, [])):
                raise PositionMismatchError(f"{row}, holds {len(self.live[row.slot])}")
        if missing := set(self.live) - {row.slot for row in rows}:
            raise LiveSlotOmittedError(f"{missing}")
        self.on_decode(rows)
        self.calls.append(("decode", [(row.slot, row.position) for row in rows]))
        for row in rows:
            self.live.setdefault(row.slot, []).append(row.token)
        return Output(self._logits([row.slot for row in rows]))

    def release(self, slots: Sequence[int]) -> None:
        self._guard(slots)
        for slot in slots:
            if slot not in self.live:
                raise SlotNotLiveError(f"{slot}")
            del self.live[slot]

    def close(self) -> None:
        self.closed += 1

    def fail(self) -> None:
        """Die as a device does; meant for the hooks."""
        self.dead = True
        raise DeviceFailedError("execution status 1006")

    def _guard(self, slots: Sequence[int]) -> None:
        self._handed_out[:] = np.nan  # outputs are valid until the next call
        if self.dead:
            raise DeviceFailedError("the device has failed")
        if len(set(slots)) != len(slots):
            raise SlotDuplicateError(f"{slots}")
        if any(not 0 <= slot < self.info.shape.batch_size for slot in slots):
            raise SlotOutOfRangeError(f"{slots}")

    def _guard_prefill(self, row: PrefillRow) -> None:
        insert = self.info.prefill_mode == "insert"
        if not row.tokens:
            raise EmptyPromptError(f"{row}")
        if len(row.tokens) > (self.info.max_prompt_tokens if insert else self.info.shape.max_length - 1):
            raise PromptTooLongError(f"{len(row.tokens)}")
        if insert and len(row.tokens) == 1:
            raise OneTokenPromptError(f"{row}")
        if insert and row.slot in self.live:
            raise SlotBusyError(f"{row.slot}")
        for token in row.tokens:
            self._guard_token(token)

    def _guard_token(self, token: int) -> None:
        if not 0 <= token < self.info.vocab_size:
            raise TokenOutOfRangeError(f"{token}")

    def _logits(self, slots: Sequence[int]) -> np.ndarray:
        vocab = self.info.vocab_size
        self._handed_out = np.stack([history_logits(self.live[slot], vocab) for slot in slots])
        return self._handed_out

    def _score(self, row: PrefillRow) -> np.ndarray:
        scores = []
        for end in range(1, len(row.tokens)):
            logits = history_logits(row.tokens[:end], self.info.vocab_size).astype(np.float64)
            scores.append(logits[row.tokens[end]] - np.log(np.exp(logits).sum()))
        return np.array(scores, np.float32)


def expected_events(request: GenerationRequest, vocab: int) -> list[TokenEvent]:
    """What the request must give in any company: the model and the sampler, nothing between them."""
    tokens, params, events = list(request.input_ids), request.sampling, []
    for count in range(1, request.max_new_tokens + 1):
        counts = TokenCounts(tokens) if has_penalty(params) else None
        row = SampleRow(params, len(tokens) - request.prompt_length, counts)
        choice = sample(history_logits(tokens, vocab)[None], [row])[0]
        assert choice is not None
        tokens.append(choice.token_id)
        finish = None
        if count == request.max_new_tokens:
            finish = FinishReason.LENGTH
        elif choice.token_id in request.stop_ids:
            finish = FinishReason.EOS_TOKEN
        events.append(TokenEvent(choice.token_id, choice.logprob, choice.top_tokens, finish))
        if finish:
            break
    return events


def random_request(rng: np.random.Generator, *, length: int, prompt: int, vocab: int) -> GenerationRequest:
    """Any mixture of lengths, parameters and stop ids that fits the slot; sometimes resumed."""
    size = int(rng.integers(1, prompt + 1))
    generated = int(rng.integers(0, 4)) if size + 8 < length else 0
    params = SamplingParams(
        do_sample=bool(rng.integers(0, 2)),
        temperature=float(rng.choice([0.7, 1.0])),
        top_k=int(rng.choice([0, 5])),
        top_p=float(rng.choice([1.0, 0.8])),
        repetition_penalty=float(rng.choice([1.0, 1.3])),
        frequency_penalty=float(rng.choice([0.0, 0.7])),
        seed=int(rng.integers(0, 2**63)),
        top_n_tokens=int(rng.choice([0, 3])),
    )
    return GenerationRequest(
        input_ids=tuple(rng.integers(0, vocab, size + generated).tolist()),
        prompt_length=size,
        max_new_tokens=int(rng.integers(1, length - size - generated + 1)),
        sampling=params,
        stop_ids=frozenset(rng.integers(0, vocab, 2).tolist()),
    )


def without_times(events: Sequence[TokenEvent]) -> list[TokenEvent]:
    """The events less what depends on the clock."""
    return [replace(event, queue_s=None) for event in events]
