"""Groups 1 to 7: every row of a batch equals the same text alone, whatever shares the batch with it."""

from __future__ import annotations

import numpy as np
import pytest
from contract.checked_batch import Alone, Batch, assert_agrees, said
from contract.world import B, C, T, World

from neuron_server import errors
from neuron_server.backend import Backend, DecodeRow, PrefillRow


@pytest.mark.group(1)
def test_batched_equals_alone(batch: Batch) -> None:
    batch.add((0, 3), (1, 9), (2, 5), (3, 7))
    for _ in range(6):
        batch.step()


@pytest.mark.group(1)
def test_uneven_prompts_enter_in_any_order_of_slots(batch: Batch) -> None:
    """And beside prompts of 2, C - 1 and C tokens one of a single token, which enters by decode."""
    batch.add((3, C), (0, 2), (2, C - 1))
    batch.step(1)
    for _ in range(5):
        batch.step()


@pytest.mark.group(1)
def test_the_outputs_come_in_the_order_of_the_rows(backend: Backend, alone: Alone) -> None:
    texts = {2: [5, 6, 7], 0: [8, 9], 3: [1, 2, 3, 4], 1: [60, 50]}
    output = said(backend, backend.prefill([PrefillRow(s, t) for s, t in texts.items()]), B)
    for row, text in zip(output, texts.values(), strict=True):
        assert_agrees(row, alone(text)[-1], str(text))
    steps = [DecodeRow(slot, slot + 11, len(texts[slot])) for slot in (1, 3, 0, 2)]
    for step, row in zip(steps, said(backend, backend.decode(steps), B), strict=True):
        assert_agrees(row, alone([*texts[step.slot], step.token])[-1], str(step))


@pytest.mark.group(2)
def test_requests_join_while_others_run_in_several_waves(batch: Batch) -> None:
    batch.add((2, 4))
    batch.step()
    batch.add((3, C), (0, 2))
    batch.step()
    batch.step()
    batch.add((1, 11))
    for _ in range(5):
        batch.step()


@pytest.mark.group(2)
@pytest.mark.only(mode="insert")
def test_inserting_leaves_the_outputs_of_others_unchanged(world: World) -> None:
    with_guest, without = world.make(), world.make()
    for backend in (with_guest, without):
        backend.prefill([PrefillRow(0, [5, 6, 7, 8]), PrefillRow(2, [9, 10])])
    with_guest.prefill([PrefillRow(1, list(range(C)))])
    guest = DecodeRow(1, 3, C)
    rows = [DecodeRow(0, 1, 4), DecodeRow(2, 2, 2)]
    one = said(with_guest, with_guest.decode([*rows, guest]), 3)[:2]
    other = said(without, without.decode(rows), 2)
    # Static shapes run the same kernels whatever the company, so there not a bit may differ.
    np.testing.assert_allclose(one, other, atol=0 if world.subject.bitwise else 1e-4, rtol=0)
    for backend in (with_guest, without):
        backend.close()


@pytest.mark.group(3)
@pytest.mark.parametrize("slots", [(0,), (3,), (1, 2), (3, 0), (2, 1, 3), (3, 2, 1, 0), (0, 1, 2, 3)])
def test_any_subset_of_slots_may_be_live_in_any_order(batch: Batch, slots: tuple[int, ...]) -> None:
    batch.add(*((slot, 2 + 3 * slot) for slot in slots))
    for _ in range(3):
        batch.step()


@pytest.mark.group(4)
def test_a_short_text_reuses_the_slot_of_a_long_one_and_the_reverse(batch: Batch) -> None:
    batch.add((1, C), (3, 2))
    for _ in range(8):
        batch.step()
    batch.free(1, 3)
    batch.add((1, 2), (3, C))
    for _ in range(T - C):
        batch.step()
    batch.free(3)
    for _ in range(T - (T - C) - 2):
        batch.step()
    assert len(batch.texts[1]) == T


@pytest.mark.group(5)
def test_one_token_prompt_alone_enters_by_decode(batch: Batch) -> None:
    batch.step(2)
    batch.step()
    batch.step()


@pytest.mark.group(5)
def test_one_token_prompts_enter_beside_live_slots_and_leave_them_intact(batch: Batch) -> None:
    batch.add((0, 9), (3, 2))
    batch.step()
    batch.step(1, 2)
    for _ in range(4):
        batch.step()


@pytest.mark.group(5)
@pytest.mark.only(mode="insert")
def test_one_token_prompts_enter_together_with_longer_ones(batch: Batch) -> None:
    """The longer ones by prefill, the short ones by the decode that follows it."""
    batch.add((1, 4))
    batch.step()
    batch.add((0, 9), (3, 2))
    batch.step(2)
    for _ in range(3):
        batch.step()


@pytest.mark.group(5)
@pytest.mark.only(mode="rebuild")
def test_one_token_prompts_take_part_in_a_rebuild(batch: Batch) -> None:
    batch.add((3, 1))
    batch.step()
    batch.add((0, 9), (1, 1), (2, 2))
    for _ in range(4):
        batch.step()


@pytest.mark.group(6)
def test_a_slot_takes_its_last_possible_token(batch: Batch) -> None:
    batch.add((1, C))
    for _ in range(T - C):
        batch.step()
    assert len(batch.texts[1]) == T
    with pytest.raises(errors.PositionOverflowError):
        batch.backend.decode([DecodeRow(1, 0, T)])
    batch.free(1)
    batch.add((1, 3))
    batch.step()


@pytest.mark.group(6)
def test_the_longest_prompt_of_all_has_room_for_one_token(world: World) -> None:
    """T - 1 tokens of prompt, and one that is generated; beside it a short one that goes on."""
    backend = world.make(max_prompt_tokens=T - 1)
    batch = Batch(backend, world.subject.alone)
    batch.add((2, T - 1), (0, 2))
    batch.step()
    assert len(batch.texts[2]) == T
    with pytest.raises(errors.PositionOverflowError):
        backend.decode([DecodeRow(2, 0, T), DecodeRow(0, 0, 3)])
    batch.free(2)
    for _ in range(3):
        batch.step()
    batch.free(0)
    backend.close()


@pytest.mark.group(7)
@pytest.mark.parametrize("size", range(1, B + 1))
def test_a_partial_batch_computes_what_a_full_one_does(world: World, size: int) -> None:
    texts = [[5, 6, 7], [8, 9], [11, 12, 13, 14, 15], [1, 2, 3, 4]]
    prefills, decodes = [], []
    for rows in (size, B):
        backend = world.make()
        live = list(range(rows))
        output = said(backend, backend.prefill([PrefillRow(s, texts[s]) for s in live]), rows)
        prefills.append(output[:size].copy())
        output = said(backend, backend.decode([DecodeRow(s, s + 20, len(texts[s])) for s in live]), rows)
        decodes.append(output[:size].copy())
        backend.close()
    # Where one column is shared, a longer neighbour moves a row's padding, and so the order of its sums.
    exact = world.subject.bitwise and not (world.mode == "rebuild" and world.subject.shared_column)
    for part, full in (prefills, decodes):
        np.testing.assert_allclose(part, full, atol=0 if exact else 1e-4, rtol=0)


@pytest.mark.group(7)
def test_calls_without_rows_do_nothing(backend: Backend) -> None:
    width = 0 if backend.info.samples else backend.info.vocab_size
    assert backend.decode([]).logits.shape == (0, width)
    assert backend.prefill([]).logits.shape == (0, width)
    backend.release([])
