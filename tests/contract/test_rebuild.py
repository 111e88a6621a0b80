"""Group 9: a cache that cannot be inserted into is rebuilt from the texts, and nobody notices."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from contract.checked_batch import Alone, Batch, said
from contract.world import C, T

from neuron_server import errors
from neuron_server.backend import Backend, DecodeRow, Output, PrefillRow

pytestmark = [pytest.mark.group(9), pytest.mark.only(mode="rebuild")]


def test_requests_join_leave_and_join_again(batch: Batch) -> None:
    batch.add((0, 5), (2, 3))
    batch.step()
    batch.step()
    batch.add((1, C))
    batch.step()
    batch.free(2)
    batch.step()
    batch.add((2, 2), (3, 4))
    batch.step()
    batch.free(0, 1)
    batch.add((0, 7))
    for _ in range(3):
        batch.step()
    batch.free(0, 2, 3)
    batch.add((3, 9))
    batch.step()


def _best(backend: Backend, output: Output, rows: int) -> list[int]:
    out = said(backend, output, rows)
    return [int(row) if row.ndim == 0 else int(row.argmax()) for row in out]


def _greedy_alone(alone: Alone, prompt: list[int], new: int) -> list[int]:
    text = list(prompt)
    for _ in range(new):
        text.append(int(alone(text)[-1].argmax()))
    return text


def test_the_pending_token_of_a_running_row_is_neither_lost_nor_repeated(
    backend: Backend, alone: Alone
) -> None:
    """The first row's newest token has not entered the cache when the second joins, twice over."""
    first, second, third = [3, 1, 4, 1, 5], [9, 2, 6], [7, 7]
    texts = {0: list(first)}
    texts[0] += _best(backend, backend.prefill([PrefillRow(0, first)]), 1)
    joining = {1: second, 2: third}
    for step in range(8):
        if step in (2, 5):
            slot, prompt = joining.popitem()
            rows = [PrefillRow(s, text[:-1]) for s, text in texts.items()] + [PrefillRow(slot, prompt)]
            texts[slot] = [*prompt, _best(backend, backend.prefill(rows), len(rows))[-1]]
        rows = [DecodeRow(s, text[-1], len(text) - 1) for s, text in texts.items()]
        for slot, token in zip(list(texts), _best(backend, backend.decode(rows), len(rows)), strict=True):
            texts[slot].append(token)
    for slot, prompt in enumerate((first, second, third)):
        assert texts[slot] == _greedy_alone(alone, prompt, len(texts[slot]) - len(prompt)), f"slot {slot}"


def test_a_rebuild_takes_histories_longer_than_any_prompt_and_single_tokens(batch: Batch) -> None:
    batch.add((0, C))
    for _ in range(T - 1 - C):
        batch.step()
    batch.add((1, 1))
    batch.step()
    assert len(batch.texts[0]) == T


def test_the_short_rows_go_on_when_the_longest_has_used_all_its_room(batch: Batch) -> None:
    """Where all rows share one column, capacity would end for all of them together."""
    batch.add((0, C), (1, 3))
    for _ in range(T - C):
        batch.step()
    batch.free(0)
    batch.add((2, 5))
    while len(batch.texts[1]) < T:
        batch.step()


def test_a_newcomer_shorter_than_the_others_has_all_its_room(batch: Batch) -> None:
    batch.add((3, C))
    for _ in range(6):
        batch.step()
    batch.add((0, 2))
    for _ in range(T - C - 6):
        batch.step()
    batch.free(3)
    while len(batch.texts[0]) < T:
        batch.step()


def test_a_rebuild_of_nothing_is_allowed(backend: Backend) -> None:
    width = 0 if backend.info.samples else backend.info.vocab_size
    assert backend.prefill([]).logits.shape == (0, width)


def test_the_rows_that_were_running_may_come_in_any_order(batch: Batch) -> None:
    batch.add((2, 4), (0, 6))
    batch.step()
    rows = [PrefillRow(0, batch.texts[0]), PrefillRow(3, [1, 2]), PrefillRow(2, batch.texts[2])]
    output = said(batch.backend, batch.backend.prefill(rows), 3)
    batch.texts[3] = [1, 2]
    batch.seen[3] = {2: np.array(output[1])}
    batch.step()


@pytest.mark.group(11)
def test_a_rebuild_is_refused_without_every_live_slot_or_with_another_history(batch: Batch) -> None:
    batch.add((1, 3), (2, 4))
    rows = [PrefillRow(slot, text) for slot, text in batch.texts.items()]
    with pytest.raises(errors.LiveSlotOmittedError):
        batch.backend.prefill([rows[0], PrefillRow(0, [1, 2])])
    with pytest.raises(errors.LiveSlotOmittedError):
        batch.backend.prefill([])
    for wrong in (rows[0].tokens[:-1], [*rows[0].tokens, 1]):  # a pending token lost, or counted twice
        with pytest.raises(errors.PositionMismatchError):
            batch.backend.prefill([replace(rows[0], tokens=wrong), rows[1]])
    batch.step()
    batch.add((0, 5))
    batch.step()
