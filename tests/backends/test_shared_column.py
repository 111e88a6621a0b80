"""The column that the rows of a static batch share."""

from __future__ import annotations

import random

import torch

from neuron_server.backends.shared_column import SharedColumn

B, S = 3, 8


def test_rows_are_left_padded_to_the_longest_and_rows_without_text_are_zeros() -> None:
    layout = SharedColumn(B, S).rebuild({2: [5, 6], 0: [1, 2, 3]})
    assert layout.input_ids.tolist() == [[1, 2, 3], [0, 0, 0], [0, 5, 6]]
    assert layout.attention_mask.tolist() == [[1, 1, 1], [0, 0, 0], [0, 1, 1]]
    assert layout.input_ids.dtype == layout.attention_mask.dtype == torch.int64


def test_a_step_puts_every_row_in_one_column_and_says_where_each_text_starts() -> None:
    shared = SharedColumn(B, S)
    shared.rebuild({2: [5, 6], 0: [1, 2, 3]})
    step = shared.step({0: 4, 2: 7})
    assert step.input_ids.tolist() == [[4], [0], [7]]
    assert step.cache_ids.tolist() == [3]
    assert step.start_ids.tolist() == [0, 0, 1]
    dtypes = (step.input_ids.dtype, step.cache_ids.dtype, step.start_ids.dtype)
    assert dtypes == (torch.int64, torch.int32, torch.int64)


def test_a_text_may_start_in_the_column_of_a_step() -> None:
    shared = SharedColumn(B, S)
    shared.rebuild({0: [1, 2, 3]})
    step = shared.step({0: 4, 1: 9})
    assert step.start_ids.tolist() == [0, 3, 0]
    assert shared.step({0: 5, 1: 8}).start_ids.tolist() == [0, 3, 0]


def test_the_column_starts_over_when_nothing_is_live() -> None:
    shared = SharedColumn(B, S)
    shared.rebuild({0: [1] * (S - 1)})
    shared.step({0: 4})
    shared.free([0])
    assert not shared.is_full
    assert shared.step({1: 9}).cache_ids.tolist() == [0]


def test_a_step_always_has_a_column_once_the_batch_is_compacted() -> None:
    """Over random lives of three rows: whenever the column meets the end, compacting gains a column at least.

    Each row that is stepped holds at most S - 1 tokens, since a slot of S tokens is refused before; so the
    longest text, which is what the column becomes, is shorter than the cache.
    """
    rng = random.Random(5)
    shared = SharedColumn(B, S)
    texts: dict[int, list[int]] = {}
    compactions = 0
    for _ in range(3000):
        for slot in [s for s, text in texts.items() if len(text) == S or rng.random() < 0.05]:
            shared.free([slot])
            del texts[slot]
        joining = {s: [1] * rng.randint(1, S - 1) for s in range(B) if s not in texts and rng.random() < 0.1}
        if joining:
            texts |= joining
            shared.rebuild(texts)
        tokens = {slot: rng.randrange(9) for slot in texts}
        tokens |= {slot: 1 for slot in range(B) if slot not in texts and rng.random() < 0.1}
        if not tokens:
            continue
        if shared.is_full:
            before = shared.column
            layout = shared.compact()
            compactions += 1
            assert shared.column == layout.input_ids.shape[1] < before == S
            for slot, text in texts.items():
                assert layout.input_ids[slot, -len(text) :].tolist() == text
        step = shared.step(tokens)
        assert int(step.cache_ids) < S
        for slot, token in tokens.items():
            texts.setdefault(slot, []).append(token)
            assert int(step.cache_ids) - int(step.start_ids[slot]) == len(texts[slot]) - 1
    assert compactions > 50
