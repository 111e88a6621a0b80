"""Repetition and frequency penalty on one row, from counts that grow by one token a step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from neuron_server.request import SamplingParams


class TokenCounts:
    """How often each token stands in a row's prompt and generated text; adding one is O(1)."""

    def __init__(self, tokens: Sequence[int]) -> None:
        ids, counts = np.unique(np.asarray(tokens, dtype=np.int64), return_counts=True)
        self._distinct = len(ids)
        self._ids = np.concatenate([ids, np.zeros(64, np.int64)])
        self._counts = np.concatenate([counts.astype(np.float32), np.zeros(64, np.float32)])
        self._place = {int(token): place for place, token in enumerate(ids)}
        self.total = len(tokens)

    @property
    def ids(self) -> npt.NDArray[np.int64]:
        """The distinct tokens (d,), in no particular order."""
        return self._ids[: self._distinct]

    @property
    def counts(self) -> npt.NDArray[np.float32]:
        """How often each of ``ids`` stands in the text (d,)."""
        return self._counts[: self._distinct]

    def add(self, token: int) -> None:
        """One more token of the text."""
        self.total += 1
        place = self._place.get(token)
        if place is None:
            place = self._place[token] = self._distinct
            if place == len(self._ids):
                self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
                self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
            self._ids[place] = token
            self._distinct += 1
        self._counts[place] += 1


def has_penalty(params: SamplingParams) -> bool:
    """Whether a row needs ``TokenCounts`` at all."""
    return params.repetition_penalty != 1.0 or params.frequency_penalty != 0.0


def penalise(row: npt.NDArray[np.float32], counts: TokenCounts, params: SamplingParams) -> None:
    """Apply both penalties to one row of logits (V,), in place; repetition first, as TGI does.

    Repetition, as in transformers and TGI: the logit of every token of prompt and generated text is divided
    by the penalty where positive, multiplied where negative. Frequency, as in the batched path of TGI's
    reference shard (``HeterogeneousFrequencyPenaltyLogitsProcessor``): logits -= penalty x count / length,
    the *relative* frequency in prompt and generated text. OpenAI's own definition has no "/ length"; the
    behaviour of TGI wins here. TGI divides by the padded length of its batch, so a neighbour changes the
    answer; here the length is the row's own, which is what TGI computes for a request that runs alone.
    """
    logits = row[counts.ids]  # (d,)
    if params.repetition_penalty != 1.0:
        penalty = np.float32(params.repetition_penalty)
        logits = np.where(logits < 0, logits * penalty, logits / penalty)
    if params.frequency_penalty != 0.0:
        logits = logits - counts.counts * np.float32(params.frequency_penalty / counts.total)
    row[counts.ids] = logits
