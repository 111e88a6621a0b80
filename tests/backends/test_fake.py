"""The fake backend's own promise: a mistake in scheduling changes tokens."""

from __future__ import annotations

import numpy as np

from neuron_server.backend import DecodeRow, PrefillRow
from neuron_server.backends.fake import FakeBackend
from neuron_server.shape import StaticShape


def fake(**options: bool) -> FakeBackend:
    return FakeBackend(100, StaticShape(3, 24), 12, **options)


def logits_after(tokens: list[int]) -> np.ndarray:
    return fake().prefill([PrefillRow(0, tokens)]).logits[0]


def test_every_token_of_the_history_matters_and_so_does_its_place() -> None:
    text = [5, 5, 9, 1, 0, 7]
    others = [[*text[:i], text[i] + 1, *text[i + 1 :]] for i in range(len(text))]
    others += [text[1:], [*text, 0], [0, *text], list(reversed(text)), [5, 9, 5, 1, 0, 7]]
    assert all(logits_after(other).argmax() != logits_after(text).argmax() for other in others)


def test_logits_are_spread_and_repeatable() -> None:
    logits = logits_after([1, 2, 3])
    assert (logits == logits_after([1, 2, 3])).all()
    assert logits.dtype == np.float32
    assert 14 < np.ptp(logits) <= 16
    assert len(np.unique(logits)) == 100


def test_greedy_texts_do_not_run_in_circles() -> None:
    backend = fake()
    text = [1, 2]
    logits = backend.prefill([PrefillRow(0, text)]).logits
    for _ in range(20):
        text.append(int(logits[0].argmax()))
        logits = backend.decode([DecodeRow(0, text[-1], len(text) - 1)]).logits
    assert len(set(text)) > 12


def test_a_poisoned_cell_that_is_attended_changes_the_logits() -> None:
    """If a backend's refusals were wrong, its garbage would show."""
    backend = fake(poison=True)
    expected = backend.prefill([PrefillRow(0, [1, 2, 3]), PrefillRow(1, [4, 5])]).logits[0]
    assert (backend._logits([(0, 3)])[0] == expected).all()
    del backend._slots._held[0]  # a live slot that the bookkeeping has forgotten
    backend.decode([DecodeRow(1, 6, 2)])
    assert (backend._logits([(0, 3)])[0] != expected).any()
