"""What the graphs are fed, by optimum-neuron 0.0.28's own helpers and by ours, side by side."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from contract.checked_batch import Batch
from contract.subject import Wanted
from hosts.legacy.subject import SUBJECTS

from neuron_server.shape import StaticShape

B, T, C = 4, 32, 20
Tensors = dict[str, torch.Tensor | None]


class Watched:
    """The real model, and the inputs of every call of it."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.seen: list[Tensors] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def __call__(self, *, return_dict: bool, **inputs: torch.Tensor | None) -> Any:
        self.seen.append(inputs)
        return self.model(**inputs, return_dict=return_dict)


def watched(name: str, batch_size: int = B) -> tuple[Batch, Watched]:
    backend = SUBJECTS[name].make(Wanted(StaticShape(batch_size, T), C))
    model = Watched(vars(backend)["_model"])
    vars(backend)["_model"] = model
    return Batch(backend, SUBJECTS[name].alone), model


def assert_equal(ours: Tensors, theirs: Tensors) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        mine = ours[name]
        if tensor is None:
            assert mine is None, name
        else:
            assert mine is not None, name
            assert (mine.dtype, mine.tolist()) == (tensor.dtype, tensor.tolist()), name


@pytest.fixture
def inserting() -> Iterator[tuple[Batch, Watched]]:
    batch, model = watched("legacy-0.0.28")
    yield batch, model
    for slot in batch.texts:
        batch.check(slot)


def test_the_helpers_turn_left_padding_into_right_padding_for_continuous_batching(
    inserting: tuple[Batch, Watched],
) -> None:
    """Prompts of three and five tokens for slots 2 and 0, and the step after them."""
    model = inserting[1].model
    mask = torch.tensor([[0, 0, 1, 1, 1], [1] * 5])
    ids = torch.tensor([[0, 0, 5, 6, 7], [11, 12, 13, 14, 15]])
    inputs = model.prepare_inputs_for_prefill(ids, mask, seq_ids=torch.tensor([2, 0]))
    assert inputs["input_ids"].tolist() == [[5, 6, 7, 0, 0], [11, 12, 13, 14, 15]]
    assert inputs["cache_ids"].tolist() == [[0, 1, 2, 0, 0], [0, 1, 2, 3, 4]]
    assert inputs["start_ids"].tolist() == [2, 0]
    longer = torch.cat([mask, torch.ones(2, 1, dtype=torch.int64)], 1)
    step = model.prepare_inputs_for_decode(torch.tensor([[8], [9]]), longer, seq_ids=torch.tensor([2, 0]))
    assert step["cache_ids"].tolist() == [[3], [5]]


def test_our_steps_with_continuous_batching_are_those_of_the_helper(
    inserting: tuple[Batch, Watched],
) -> None:
    batch, model = inserting
    rng = random.Random(3)
    for _ in range(60):
        free = [slot for slot in range(B) if slot not in batch.texts]
        if free and rng.random() < 0.3:
            batch.add((rng.choice(free), rng.randint(2, C)))
        batch.free(*[slot for slot, text in batch.texts.items() if len(text) == T or rng.random() < 0.03])
        batch.step(*[slot for slot in range(B) if slot not in batch.texts and rng.random() < 0.1])
        if not batch.texts:
            continue
        ours = model.seen[-1]
        slots = ours["start_ids"]
        assert slots is not None
        lengths = [len(batch.texts[slot]) for slot in slots.tolist()]
        mask = (torch.arange(max(lengths)) >= max(lengths) - torch.tensor(lengths)[:, None]).to(torch.int64)
        tokens = torch.tensor([[batch.texts[slot][-1]] for slot in slots.tolist()])
        assert_equal(ours, model.prepare_inputs_for_decode(tokens, mask, seq_ids=slots))


def test_our_steps_of_a_static_batch_are_those_of_the_helper() -> None:
    """The mask grows by a column each step, as in upstream's own ``generate``; a rebuild starts it anew."""
    batch, model = watched("legacy-static-0.0.28")
    rng = random.Random(4)
    mask = torch.zeros(B, 0, dtype=torch.int64)
    steps = compactions = 0
    for _ in range(150):
        gone = [slot for slot, text in batch.texts.items() if len(text) == T or rng.random() < 0.03]
        batch.free(*gone)
        mask[gone] = 0
        free = [slot for slot in range(B) if slot not in batch.texts]
        if free and rng.random() < 0.2:
            batch.add((rng.choice(free), rng.randint(1, C)))
            mask = layout(batch.texts)
        starting = [slot for slot in range(B) if slot not in batch.texts and rng.random() < 0.05]
        if not batch.texts and not starting:
            continue
        if not batch.texts:
            mask = mask[:, :0]
        elif mask.shape[1] == T:  # the column has met the end of the cache
            mask = layout(batch.texts)
            compactions += 1
        batch.step(*starting)
        column = torch.tensor([[int(slot in batch.texts)] for slot in range(B)])
        mask = torch.cat([mask, column], 1)
        tokens = torch.tensor([[batch.texts[slot][-1] if slot in batch.texts else 0] for slot in range(B)])
        assert_equal(model.seen[-1], model.prepare_inputs_for_decode(tokens, mask))
        steps += 1
    assert steps > 100
    assert compactions > 2
    for slot in batch.texts:
        batch.check(slot)


def layout(texts: dict[int, list[int]]) -> torch.Tensor:
    """The mask of these texts, left padded to the longest; int64 (B, L)."""
    longest = max(map(len, texts.values()))
    mask = torch.zeros(B, longest, dtype=torch.int64)
    for slot, text in texts.items():
        mask[slot, longest - len(text) :] = 1
    return mask


def test_a_static_prefill_is_left_padded_and_has_no_positions() -> None:
    batch, model = watched("legacy-static-0.0.28")
    batch.add((2, 3), (0, 5))
    inputs = model.seen[-1]
    ids, starts = inputs["input_ids"], inputs["start_ids"]
    assert ids is not None
    assert starts is not None
    assert inputs["cache_ids"] is None
    assert ids.tolist() == [batch.texts[0], [0] * 5, [0, 0, *batch.texts[2]], [0] * 5]
    assert starts.tolist() == [0, 0, 2, 0]  # what the helper says of a row without text
    batch.check(0)
    batch.check(2)
