"""A constraint made by hand: the text alternates between given sets of tokens, then ends."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from neuron_server.errors import ValidationError
from neuron_server.grammar import Constraint, Grammar

GRAMMAR = Grammar("regex", "alternating")


class Alternating:
    """Token n of the text is one of ``sets[n % len(sets)]``; after ``length`` tokens only ``stop_ids`` are.

    From token ``breaks_at`` on no mask can be had, and ``advance`` refuses token ``refuses``.
    """

    def __init__(
        self,
        sets: Sequence[Sequence[int]],
        stop_ids: frozenset[int] = frozenset(),
        *,
        length: int = 10**6,
        breaks_at: int = 10**6,
        refuses: int | None = None,
    ) -> None:
        self.sets = sets
        self.stop_ids = stop_ids
        self.length = length
        self.breaks_at = breaks_at
        self.refuses = refuses
        self.seen: list[int] = []

    @property
    def allowed(self) -> list[int]:
        at_end = len(self.seen) >= self.length
        return sorted(self.stop_ids) if at_end else [*self.sets[len(self.seen) % len(self.sets)]]

    def mask(self, logits: np.ndarray) -> None:
        if len(self.seen) >= self.breaks_at:
            raise ValidationError("grammar is too complex to follow: broken on purpose")
        kept = logits[self.allowed]
        logits[:] = -np.inf
        logits[self.allowed] = kept

    def advance(self, token_id: int) -> None:
        if token_id not in self.allowed or token_id == self.refuses:
            raise ValueError(f"token {token_id} is not allowed")
        self.seen.append(token_id)

    def fork(self) -> Constraint:
        copy = Alternating(self.sets, self.stop_ids, length=self.length, breaks_at=self.breaks_at)
        copy.seen = [*self.seen]
        return copy
