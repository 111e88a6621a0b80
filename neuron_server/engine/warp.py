"""Stage two of sampling: warpers, draw and top-n on the candidates of n rows, never on the vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from neuron_server.engine.candidates import Candidates, Mass
from neuron_server.event import TopToken
from neuron_server.request import SamplingParams

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Choice:
    """The token of one row, its log-probability (nats, float32) and the likeliest tokens, likeliest first.

    ``logprob`` is ``None`` where the device chose: it tells no more than the token.
    """

    token_id: int
    logprob: float | None
    top_tokens: tuple[TopToken, ...] = ()


@dataclass(frozen=True, slots=True)
class DrawRow:
    """One row's wishes. ``mass``: of the whole row at the row's temperature; needed unless ``top_k`` is set.

    ``uniform`` in [0, 1) is its random number; ``None`` takes the likeliest token and no warpers.
    """

    params: SamplingParams
    uniform: float | None = None
    mass: Mass | None = None


def draw(candidates: Candidates, rows: Sequence[DrawRow]) -> list[Choice | None]:
    """Choose one token per row; ``None`` where the candidates are too few to know, so the caller must widen.

    Warpers in TGI's order, each with the kept set of its transformers namesake: temperature, top_k (keeps
    ties), top_p (keeps the token that crosses it), typical_p. A row without warpers can be answered as long
    as its random number falls on a candidate. Rows depend on nothing but themselves, to the last bit: all
    sums are running sums in the order of the candidates, so a wider set has the same beginning. The peak of
    every row must be finite.
    """
    warp = _Warp(candidates, rows)
    warp.top_k()
    warp.top_p()
    warp.typical_p()
    return warp.choices()


class _Warp:
    """The state between warpers. W is the width of the candidates."""

    def __init__(self, candidates: Candidates, rows: Sequence[DrawRow]) -> None:
        self._rows = rows
        self._ids = candidates.ids  # (n, W)
        self._complete = candidates.complete  # (n,)
        sampling = np.array([row.uniform is not None for row in rows])
        params = [row.params for row in rows]
        self._temperature = np.where(sampling, [p.temperature for p in params], 1.0)  # (n,)
        self._top_k = np.where(sampling, [p.top_k for p in params], 0)  # (n,)
        self._top_p = np.where(sampling, [p.top_p for p in params], 1.0)  # (n,)
        self._typical_p = np.where(sampling, [p.typical_p for p in params], 1.0)  # (n,)
        self._mass = np.array([row.mass.total if row.mass else np.nan for row in rows])  # (n,)
        logits = candidates.logits.astype(np.float64)  # (n, W)
        self._z = (logits - logits[:, :1]) / self._temperature[:, None]  # (n, W)
        self._kept = self._z > -np.inf  # (n, W)
        self._weight = np.exp(self._z)  # (n, W)
        #: The kept set is final and wholly among the candidates.
        self._cut = np.zeros(len(rows), bool)  # (n,)
        #: The candidates do not suffice.
        self._short = np.zeros(len(rows), bool)  # (n,)

    def top_k(self) -> None:
        """Keep what is at least as likely as the k-th."""
        if not self._top_k.any():
            return
        active = self._top_k > 0  # (n,)
        self._short |= active & ~self._complete & (self._top_k > self._kept.sum(axis=1))
        place = np.where(active, np.minimum(self._top_k, self._z.shape[1]) - 1, 0)[:, None]  # (n, 1)
        kth = np.where(active[:, None], np.take_along_axis(self._z, place, axis=1), -np.inf)  # (n, 1)
        self._restrict(self._z >= kth, active)

    def top_p(self) -> None:
        """Keep the likeliest tokens until their mass reaches p, the crossing one included."""
        active = self._top_p < 1.0  # (n,)
        if not active.any():
            return
        running = np.cumsum(self._weight, axis=1)  # (n, W)
        limit = self._top_p * self._total(running)  # (n,)
        self._short |= active & ~self._cut & ~self._complete & (running[:, -1] < limit)
        inside = np.empty_like(self._kept)  # (n, W)
        inside[:, 0] = True
        inside[:, 1:] = running[:, :-1] < limit[:, None]
        self._restrict(inside | ~active[:, None], active)

    def typical_p(self) -> None:
        """Keep the tokens whose information is nearest to the entropy until their mass reaches p."""
        for i in np.flatnonzero(self._typical_p < 1.0).tolist():
            if not self._short[i]:
                self._typical_row(i)

    def _typical_row(self, i: int) -> None:
        kept = self._kept[i]  # (W,)
        total = float(np.cumsum(self._weight[i])[-1] if self._cut[i] else self._mass[i])
        information = np.log(total) - self._z[i]  # (W,) inf where padded
        share = self._weight[i] / total  # (W,)
        mass = self._rows[i].mass
        if self._cut[i] or mass is None:
            entropy = float(np.cumsum(share * np.where(kept, information, 0.0))[-1])
        else:
            entropy = mass.entropy
        distance = np.where(kept, np.abs(information - entropy), np.inf)  # (W,)
        order = np.argsort(distance, kind="stable")  # (W,)
        running = np.cumsum(share[order])  # (W,)
        reached = int((running < self._typical_p[i]).sum())
        last = int(kept.sum()) - 1
        bound = distance[order[min(reached, last)]]
        if not (self._cut[i] or self._complete[i]):
            # Tokens left out are less likely than the last candidate. They are farther from the entropy than
            # it is, provided that it lies beyond the entropy itself.
            self._short[i] = reached > last or information[last] < entropy or bound > distance[last]
        kept &= distance <= bound
        self._weight[i] = np.where(kept, self._weight[i], 0.0)
        self._cut[i] = True

    def _total(self, running: Floats) -> Floats:
        """The mass of each row's kept set (n,), in units of its likeliest token."""
        return np.where(self._cut, running[:, -1], self._mass)

    def _restrict(self, keep: Bools, cut: Bools) -> None:
        self._kept &= keep
        self._weight = np.where(self._kept, self._weight, 0.0)
        self._cut |= cut

    def choices(self) -> list[Choice | None]:
        """Draw: the first kept token, likeliest first, at which the running sum exceeds uniform x total."""
        running = np.cumsum(self._weight, axis=1)  # (n, W)
        total = self._total(running)  # (n,)
        uniforms = np.array([row.uniform or 0.0 for row in self._rows])  # (n,)
        place = (running <= (uniforms * total)[:, None]).sum(axis=1)  # (n,)
        width = self._z.shape[1]
        last = width - 1 - np.argmax(self._weight[:, ::-1] > 0, axis=1)  # (n,)
        closed = self._cut | self._complete  # (n,)
        self._short |= ~closed & (place >= width)
        place = np.minimum(place, last)  # rounding may put the last running sum just below the total
        logprobs = self._z - np.log(total)[:, None]  # (n, W)
        wanted = np.array([row.params.top_n_tokens for row in self._rows])  # (n,)
        self._short |= ~closed & (wanted > self._kept.sum(axis=1))
        ids = self._ids[np.arange(len(place)), place].tolist()
        chosen = logprobs[np.arange(len(place)), place].astype(np.float32).tolist()
        return [
            None if short else Choice(ids[i], chosen[i], self._top_tokens(i, logprobs[i], int(wanted[i])))
            for i, short in enumerate(self._short.tolist())
        ]

    def _top_tokens(self, i: int, logprobs: Floats, wanted: int) -> tuple[TopToken, ...]:
        if not wanted:
            return ()
        places = np.flatnonzero(self._kept[i])[:wanted]
        values = logprobs[places].astype(np.float32).tolist()
        tops = map(TopToken, self._ids[i, places].tolist(), values)
        return tuple(sorted(tops, key=lambda top: (-top.logprob, top.token_id)))
