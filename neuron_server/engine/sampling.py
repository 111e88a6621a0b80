"""The next token of every row: one vectorised pass, the same alone and in any company.

Two stages: the likeliest tokens of each row (``candidates``), then warpers and draw among them (``warp``).
A row whose parameters need more than the candidates looks again at more of them, in the end at its whole
row; the answer is the same as if it had done so at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
import numpy.typing as npt

from neuron_server.engine.candidates import Mass, row_mass, top_candidates
from neuron_server.engine.penalty import TokenCounts, penalise
from neuron_server.engine.uniform import uniform
from neuron_server.engine.warp import Choice, DrawRow, draw
from neuron_server.errors import ValidationError
from neuron_server.request import SamplingParams

#: How many candidates are looked at first, and next; then the whole row. The first pass costs nearly the same
#: for 64 and for 128.
_WIDTHS = (128, 4096)


@dataclass(frozen=True, slots=True)
class SampleRow:
    """One row to sample: ``index`` of the token in its generation, ``counts`` iff it has a penalty."""

    params: SamplingParams
    index: int
    counts: TokenCounts | None = None


def check_params(params: SamplingParams) -> None:
    """Raise ``ValidationError``, naming field and value, for what ``sample`` cannot follow."""
    rules = {
        "temperature": 0 < params.temperature < inf,
        "top_k": params.top_k >= 0,
        "top_p": params.top_p > 0,
        "typical_p": params.typical_p > 0,
        "repetition_penalty": 0 < params.repetition_penalty < inf,
        "frequency_penalty": abs(params.frequency_penalty) < inf,
        "seed": 0 <= params.seed < 2**64,
        "top_n_tokens": params.top_n_tokens >= 0,
    }
    for name, fine in rules.items():
        if not fine:  # NaN included: it compares as false
            raise ValidationError(f"{name} is out of range: {getattr(params, name)}")


def sample(logits: npt.NDArray[np.float32], rows: Sequence[SampleRow]) -> list[Choice | None]:
    """Choose the next token of each row of logits (n, V), which are overwritten.

    Order, as in TGI: repetition penalty, frequency penalty, (grammar mask), temperature, top_k, top_p,
    typical_p. The log-probabilities are those of the distribution after all of them. Greedy rows take the
    largest penalised logit (the lowest id among equals) and no warpers. ``None``: the row has no
    distribution, because a logit is NaN or infinite, or every token is masked.
    """
    for i, row in enumerate(rows):
        if row.counts is not None:
            penalise(logits[i], row.counts, row.params)
    # A grammar's mask belongs here: after the penalties, before everything that measures the row.
    scratch = np.empty(logits.shape[1], np.float32)  # (V,)
    choices: list[Choice | None] = [None] * len(rows)
    drawn: list[int] = []
    for i, row in enumerate(rows):
        if row.params.do_sample or row.params.top_n_tokens:
            drawn.append(i)
        else:
            choices[i] = _greedy(logits[i], scratch)
    if drawn:
        picked = logits if len(drawn) == len(rows) else logits[drawn]  # (d, V)
        for i, choice in zip(drawn, _draw_all(picked, [rows[i] for i in drawn], scratch), strict=True):
            choices[i] = choice
    return choices


def _greedy(row: npt.NDArray[np.float32], scratch: npt.NDArray[np.float32]) -> Choice | None:
    token = int(row.argmax())
    if not np.isfinite(row[token]):
        return None
    return Choice(token, float(np.float32(-np.log(row_mass(row, scratch).total))))


def _draw_all(
    logits: npt.NDArray[np.float32], rows: Sequence[SampleRow], scratch: npt.NDArray[np.float32]
) -> list[Choice | None]:
    vocab = logits.shape[1]
    numbers = uniform([row.params.seed for row in rows], [row.index for row in rows]).tolist()
    sound = np.isfinite(logits.max(axis=1)).tolist()
    choices: list[Choice | None] = [None] * len(rows)
    wishes = {
        i: DrawRow(row.params, numbers[i] if row.params.do_sample else None, _mass(logits[i], row, scratch))
        for i, row in enumerate(rows)
        if sound[i]
    }
    for width in _WIDTHS:
        ready = [i for i, wish in wishes.items() if _at_least(wish) <= width < vocab]
        if ready:
            picked = logits if len(ready) == len(rows) else logits[ready]  # (r, V)
            drawn = draw(top_candidates(picked, width), [wishes[i] for i in ready])
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
