"""A backend that samples as a device does: tokens out, logits kept back.

It puts optimum-neuron 0.4.5's rules on top of any backend with logits, so that everything above a model which
was exported with sampling on the device can be run and tested without one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from neuron_server.backend import (
    GREEDY,
    Backend,
    BackendInfo,
    DecodeRow,
    DeviceSampling,
    Output,
    PrefillRow,
)
from neuron_server.backends.slots import check_sampling

#: optimum-neuron's default ``max_topk``.
MAX_TOP_K = 256

#: What a row without a distribution (a logit is NaN, or nothing but -inf) chooses: no token at all. A device
#: would hand over any token, and nobody could tell.
NO_TOKEN = -1

Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]

#: The device masks with this number, before it divides by the temperature.
_MASKED = -3000.0


class OnDeviceSampling:
    """``backend``, whose logits become tokens.

    Draws come from a generator of its own. ``seed`` is for tests: a device has none, so that its draws
    cannot be repeated. Closing, and everything but the choice of tokens, is the wrapped backend's affair.
    """

    def __init__(self, backend: Backend, *, max_top_k: int = MAX_TOP_K, seed: int | None = None) -> None:
        info = backend.info
        if info.output != "logits":
            raise ValueError(f"the backend hands over {info.output}, but sampling takes logits")
        self._backend = backend
        self._info = replace(
            info, output="tokens", max_top_k=min(max_top_k, info.vocab_size), can_score_prompt=False
        )
        self._random = np.random.default_rng(seed)

    @property
    def info(self) -> BackendInfo:
        """The wrapped backend's, but for what samples; it cannot score prompts."""
        return self._info

    def prefill(self, rows: Sequence[PrefillRow]) -> Output:
        """See ``Backend.prefill``. The wish for log-probabilities of the prompt is ignored."""
        check_sampling(rows, self._info.max_top_k)
        unscored = [replace(row, prompt_logprobs=False) for row in rows]
        return self._sampled(self._backend.prefill(unscored), [row.sampling for row in rows])

    def decode(self, rows: Sequence[DecodeRow]) -> Output:
        """See ``Backend.decode``."""
        check_sampling(rows, self._info.max_top_k)
        return self._sampled(self._backend.decode(rows), [row.sampling for row in rows])

    def release(self, slots: Sequence[int]) -> None:
        """See ``Backend.release``."""
        self._backend.release(slots)

    def close(self) -> None:
        """See ``Backend.close``."""
        self._backend.close()

    def _sampled(self, output: Output, wishes: Sequence[DeviceSampling]) -> Output:
        tokens = choose(output.logits, wishes, self._info.max_top_k, self._random)
        nothing = np.empty((len(wishes), 0), np.float32)
        return Output(nothing, positions=output.positions, tokens=tokens)


def choose(
    logits: npt.NDArray[np.float32],
    wishes: Sequence[DeviceSampling],
    max_top_k: int,
    random: np.random.Generator,
) -> Ids:
    """The token (n,) of each row of logits (n, V).

    The device's order: the ``max_top_k`` likeliest tokens, top_k, temperature, softmax, top_p, draw. Rows
    know nothing of each other. Greedy is the largest logit, the lowest id among equals.
    """
    tokens = np.full(len(wishes), NO_TOKEN, np.int64)  # (n,)
    if not wishes:
        return tokens
    sound = np.isfinite(logits.max(axis=1))  # (n,)
    greedy = np.array([wish == GREEDY for wish in wishes])  # (n,)
    if (sound & greedy).any():
        tokens = np.where(sound & greedy, logits.argmax(axis=1), tokens)
    drawn = np.flatnonzero(sound & ~greedy).tolist()
    if drawn:
        tokens[drawn] = _draw(logits[drawn], [wishes[i] for i in drawn], max_top_k, random)
    return tokens


def _draw(
    logits: npt.NDArray[np.float32],
    wishes: Sequence[DeviceSampling],
    max_top_k: int,
    random: np.random.Generator,
) -> Ids:
    """One token (d,) for each row of logits (d, V), whose largest is finite."""
    top_k = np.array([[wish.top_k] for wish in wishes])  # (d, 1)
    top_p = np.array([[wish.top_p] for wish in wishes])  # (d, 1)
    temperature = np.array([[wish.temperature] for wish in wishes])  # (d, 1)
    ids, values = _likeliest(logits, max_top_k)  # (d, K)
    place = np.arange(ids.shape[1])  # (K,)
    z = np.where(place < top_k, values, _MASKED)  # (d, K)
    z = np.maximum(z, -np.finfo(np.float32).max) - z[:, :1]  # (d, K) a masked logit is -inf
    weight = np.exp(z / temperature)  # (d, K)
    # A token goes when the sum with it exceeds top_p: the one that crosses is not kept, but for the first.
    kept = (_share(weight) <= top_p) | (place == 0) | (top_p == 1.0)  # (d, K)
    share = _share(np.where(kept, weight, 0.0))  # (d, K)
    chosen = (share <= random.random((len(wishes), 1))).sum(axis=1)  # (d,)
    return np.take_along_axis(ids, chosen[:, None], axis=1)[:, 0]


def _likeliest(logits: npt.NDArray[np.float32], count: int) -> tuple[Ids, Floats]:
    """Ids and logits (d, K) of each row's likeliest tokens, likeliest first."""
    size = logits.shape[1]
    if count < size:
        ids = np.argpartition(logits, size - count, axis=1)[:, size - count :]  # (d, K)
    else:
        ids = np.broadcast_to(np.arange(size), logits.shape)  # (d, V)
    values = np.take_along_axis(logits, ids, axis=1).astype(np.float64)  # (d, K)
    order = np.lexsort((ids, -values), axis=1)  # (d, K)
    return np.take_along_axis(ids, order, axis=1), np.take_along_axis(values, order, axis=1)


def _share(weight: Floats) -> Floats:
    """Running sums (d, K) as parts of the row's total, which is exactly 1."""
    running = np.cumsum(weight, axis=1)  # (d, K)
    return running / running[:, -1:]
