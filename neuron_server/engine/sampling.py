"""The next token of every row: one vectorised pass, the same alone and in any company.

Two stages: the likeliest tokens of each row (``candidates``), then warpers and draw among them (``warp``).
A row whose parameters need more than the candidates looks again at more of them, in the end at its whole
row; the answer is the same as if it had done so at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from neuron_server.engine.candidates import Mass, row_mass, top_candidates
from neuron_server.engine.penalty import TokenCounts, penalise
from neuron_server.engine.uniform import uniform
from neuron_server.engine.warp import Choice, DrawRow, draw
from neuron_server.errors import ValidationError
from neuron_server.grammar import Constraint
from neuron_server.request import SamplingParams

#: How many candidates are looked at first, and next; then the whole row. The first pass costs nearly the same
#: for 64 and for 128.
_WIDTHS = (128, 4096)

#: Logits that greedy rows look at in one go: more than this falls out of the cache.
_BLOCK = 2**16


@dataclass(frozen=True, slots=True)
class SampleRow:
    """One row to sample: ``index`` of the token in its generation, ``counts`` iff it has a penalty."""

    params: SamplingParams
    index: int
    counts: TokenCounts | None = None
    constraint: Constraint | None = None


def sample(
    logits: npt.NDArray[np.float32], rows: Sequence[SampleRow]
) -> list[Choice | ValidationError | None]:
    """Choose the next token of each row of logits (n, V), which are overwritten.

    Order, as in TGI: repetition penalty, frequency penalty, grammar mask, temperature, top_k, top_p,
    typical_p. The log-probabilities are those of the distribution after all of them. Greedy rows take the
    largest penalised logit (the lowest id among equals) and no warpers. ``None``: the row has no
    distribution, because a logit is NaN or infinite, or every token is masked. An error is that of the row's
    grammar; the other rows know nothing of it.
    """
    refused: dict[int, ValidationError] = {}
    for i, row in enumerate(rows):
        if row.counts is not None:
            penalise(logits[i], row.counts, row.params)
        if row.constraint is not None:  # before everything that measures the row
            try:
                row.constraint.mask(logits[i])
            except ValidationError as error:
                refused[i] = error
                logits[i] = np.nan
    choices = _choose(logits, rows)
    if not refused:
        return [*choices]
    return [refused.get(i, choice) for i, choice in enumerate(choices)]


def _choose(logits: npt.NDArray[np.float32], rows: Sequence[SampleRow]) -> list[Choice | None]:
    """``sample`` on logits (n, V) that are penalised and masked."""
    drawn = [i for i, row in enumerate(rows) if row.params.do_sample or row.params.top_n_tokens]
    if not drawn:
        return _greedy_all(logits)
    if len(drawn) == len(rows):
        return _draw_all(logits, rows)
    greedy = sorted(set(range(len(rows))) - set(drawn))
    choices: list[Choice | None] = [None] * len(rows)
    for i, choice in zip(greedy, _greedy_all(logits[greedy]), strict=True):
        choices[i] = choice
    for i, choice in zip(drawn, _draw_all(logits[drawn], [rows[i] for i in drawn]), strict=True):
        choices[i] = choice
    return choices


def _greedy_all(logits: npt.NDArray[np.float32]) -> list[Choice | None]:
    """The cheapest path: a maximum and a sum per row, a few rows at a time so that they stay in the cache."""
    n, vocab = logits.shape
    rows_at_once = max(1, _BLOCK // vocab)
    scratch = np.empty((min(n, rows_at_once), vocab), np.float32)  # (r, V)
    choices: list[Choice | None] = []
    for start in range(0, n, rows_at_once):
        block = logits[start : start + rows_at_once]  # (r, V)
        tokens = block.argmax(axis=1)  # (r,)
        peaks = np.take_along_axis(block, tokens[:, None], axis=1)  # (r, 1)
        sound = np.isfinite(peaks[:, 0])  # (r,)
        z = np.subtract(block, np.where(sound[:, None], peaks, 0), out=scratch[: len(block)])  # (r, V)
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):  # in rows that are not sound
            total = np.exp(z, out=z).sum(axis=1, dtype=np.float32).astype(np.float64)  # (r,)
            logprobs = 0.0 - np.log(total)  # (r,) never -0.0
        for token, logprob, fine in zip(
            tokens.tolist(), logprobs.astype(np.float32).tolist(), sound.tolist(), strict=True
        ):
            choices.append(Choice(token, logprob) if fine else None)
    return choices


def _draw_all(logits: npt.NDArray[np.float32], rows: Sequence[SampleRow]) -> list[Choice | None]:
    """Rows that are sampled or want their top tokens, from logits (n, V)."""
    vocab = logits.shape[1]
    scratch = np.empty(vocab, np.float32)  # (V,)
    numbers = uniform([row.params.seed for row in rows], [row.index for row in rows]).tolist()
    sound = np.isfinite(logits.max(axis=1)).tolist()
    choices: list[Choice | None] = [None] * len(rows)
    wishes = {
        i: DrawRow(row.params, numbers[i] if row.params.do_sample else None, _mass(logits[i], row, scratch))
        for i, row in enumerate(rows)
        if sound[i]
    }
    for width in _WIDTHS:
        ready = [i for i, wish in wishes.items() if _at_least(wish) <= width or vocab <= width]
        if ready:
            picked = logits if len(ready) == len(rows) else logits[ready]  # (r, V)
            drawn = draw(top_candidates(picked, min(width, vocab)), [wishes[i] for i in ready])
            for i, choice in zip(ready, drawn, strict=True):
                if choice is not None:
                    choices[i] = choice
                    del wishes[i]
    for i, wish in wishes.items():  # one at a time: whole rows are large
        choices[i] = draw(top_candidates(logits[i : i + 1], vocab), [wish])[0]
    return choices


def _at_least(wish: DrawRow) -> int:
    """Candidates without which it is useless to try."""
    return max(wish.params.top_k if wish.uniform is not None else 0, wish.params.top_n_tokens)


def _mass(row: npt.NDArray[np.float32], wish: SampleRow, scratch: npt.NDArray[np.float32]) -> Mass | None:
    """The sums over the whole row, unless top_k makes them needless: it normalises among its own tokens."""
    params = wish.params
    if not params.do_sample:
        return row_mass(row, scratch)
    if params.top_k:
        return None
    return row_mass(row, scratch, temperature=params.temperature, entropy=params.typical_p < 1.0)
