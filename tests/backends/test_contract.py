"""The static-shape contract, the same for every backend.

The oracle computes one text alone: for the CPU backend the model's own forward without any cache, for the
fake one a fresh batch of one slot.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from backends.checked_batch import Alone, Batch
from conformance import NO_SHARD_RPC
from transformers import LlamaConfig, LlamaForCausalLM

from neuron_server import errors
from neuron_server.backend import Backend, DecodeRow, PrefillMode, PrefillRow
from neuron_server.backends.causal_lm import CausalLM
from neuron_server.backends.cpu import CpuBackend
from neuron_server.backends.fake import FakeBackend
from neuron_server.shape import StaticShape

B, T, C, V = 4, 32, 20, 64


@dataclass(frozen=True)
class Kind:
    name: str
    mode: PrefillMode
    poison: bool

    def __str__(self) -> str:
        return f"{self.name}-{self.mode}{'-poison' if self.poison else ''}"


KINDS = [
    Kind(name, mode, poison)
    for name in ("fake", "cpu", "strict")
    for mode in ("insert", "rebuild")
    for poison in (False, True)
]
INSERT = [kind for kind in KINDS if kind.mode == "insert"]
REBUILD = [kind for kind in KINDS if kind.mode == "rebuild"]
each_insert = pytest.mark.parametrize("kind", INSERT, ids=str)
each_rebuild = pytest.mark.parametrize("kind", REBUILD, ids=str)


@pytest.fixture(scope="module")
def lm() -> CausalLM:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=V, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=T, initializer_range=0.4,
    )  # fmt: skip
    return CausalLM(LlamaForCausalLM(config))


@pytest.fixture(params=KINDS, ids=str)
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


@pytest.fixture
def backend(kind: Kind, lm: CausalLM) -> Iterator[Backend]:
    backend = make(kind, lm)
    yield backend
    backend.close()


@pytest.fixture
def alone(kind: Kind, lm: CausalLM) -> Alone:
    """Logits (L, V) after each token of a text that nothing else shares a batch with."""
    if kind.name != "fake":
        return lambda tokens: lm.full(tokens).numpy()

    def compute(tokens: list[int]) -> np.ndarray:
        single = FakeBackend(V, StaticShape(1, T + 1), T)
        steps = (DecodeRow(0, token, position) for position, token in enumerate(tokens))
        return np.concatenate([single.decode([step]).logits for step in steps])

    return compute


def make(kind: Kind, lm: CausalLM) -> Backend:
    shape, options = StaticShape(B, T), {"prefill_mode": kind.mode, "poison": kind.poison}
    if kind.name == "fake":
        return FakeBackend(V, shape, C, **options)
    return CpuBackend(lm, shape, C, strict=kind.name == "strict", **options)


@pytest.fixture
def batch(backend: Backend, alone: Alone) -> Iterator[Batch]:
    batch = Batch(backend, alone)
    yield batch
    for slot in batch.texts:
        batch.check(slot)


# -- correctness ---------------------------------------------------------------------------------------------


def test_batched_equals_alone(batch: Batch) -> None:
    batch.add((0, 3), (1, 9), (2, 5), (3, 7))
    for _ in range(6):
        batch.step()


def test_uneven_prompts_enter_in_any_order_of_slots(batch: Batch) -> None:
    batch.add((3, C), (0, 2), (2, C - 1))
    for _ in range(5):
        batch.step()


def test_requests_join_while_others_run_in_several_waves(batch: Batch) -> None:
    batch.add((2, 4))
    batch.step()
    batch.add((3, C), (0, 2))
    batch.step()
    batch.step()
    batch.add((1, 11))
    for _ in range(5):
        batch.step()


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


def test_one_token_prompt_alone_enters_by_decode(batch: Batch) -> None:
    batch.step(2)
    batch.step()
    batch.step()


def test_one_token_prompts_enter_beside_live_slots_and_leave_them_intact(batch: Batch) -> None:
    batch.add((0, 9), (3, 2))
    batch.step()
    batch.step(1, 2)
    for _ in range(4):
        batch.step()


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


@pytest.mark.parametrize("slots", [(0,), (3,), (1, 2), (3, 0), (2, 1, 3), (0, 1, 2, 3)])
def test_any_subset_of_slots_may_be_live(batch: Batch, slots: tuple[int, ...]) -> None:
    batch.add(*((slot, 2 + 3 * slot) for slot in slots))
    for _ in range(3):
        batch.step()


def test_random_schedule_of_300_operations(batch: Batch) -> None:
    rng = random.Random(11)
    for _ in range(300):
        free = [s for s in range(B) if s not in batch.texts]
        full = [s for s, text in batch.texts.items() if len(text) == T]
        rng.shuffle(free)
        choice = rng.random()
        if full:
            batch.free(*full)
        elif choice < 0.25 and free:
            batch.add(*((s, rng.randint(2, C)) for s in free[: rng.randint(1, len(free))]))
        elif choice < 0.4 and batch.texts:
            batch.free(*rng.sample(sorted(batch.texts), rng.randint(1, len(batch.texts))))
        elif choice < 0.5 and free:
            batch.step(*free[:1])
        elif batch.texts:
            batch.step()


@each_insert
def test_inserting_leaves_the_logits_of_others_unchanged(kind: Kind, lm: CausalLM) -> None:
    with_guest, without = make(kind, lm), make(kind, lm)
    for backend in (with_guest, without):
        backend.prefill([PrefillRow(0, [5, 6, 7, 8]), PrefillRow(2, [9, 10])])
    with_guest.prefill([PrefillRow(1, list(range(C)))])
    guest = DecodeRow(1, 3, C)
    rows = [DecodeRow(0, 1, 4), DecodeRow(2, 2, 2)]
    one, other = with_guest.decode([*rows, guest]).logits[:2], without.decode(rows).logits
    # Static shapes run the same kernels whatever the company, so there not a bit may differ.
    np.testing.assert_allclose(one, other, atol=1e-4 if kind.name == "cpu" else 0, rtol=0)


@each_rebuild
def test_a_rebuild_takes_histories_longer_than_any_prompt_and_single_tokens(batch: Batch) -> None:
    batch.add((0, C))
    for _ in range(T - 1 - C):
        batch.step()
    batch.add((1, 1))
    batch.step()
    assert len(batch.texts[0]) == T


@each_rebuild
def test_a_rebuild_of_nothing_is_allowed(backend: Backend) -> None:
    assert backend.prefill([]).logits.shape == (0, V)


def test_calls_without_rows_do_nothing(backend: Backend) -> None:
    assert backend.decode([]).logits.shape == (0, V)
    assert backend.prefill([]).logits.shape == (0, V)
    backend.release([])


def test_the_positions_that_were_computed_include_the_padding(kind: Kind, backend: Backend) -> None:
    """Rows of tokens of a compiled graph are full; fast on the CPU computes what lies between live slots."""
    padded = kind.name != "cpu"
    width = T if kind.mode == "rebuild" else C
    filled = backend.prefill([PrefillRow(0, [1, 2, 3]), PrefillRow(2, [4, 5])])
    assert filled.positions == (2 * width if padded else 5)
    assert backend.decode([DecodeRow(0, 6, 3), DecodeRow(2, 7, 2)]).positions == (B if padded else 3)


def test_prompts_are_scored_when_asked(backend: Backend, alone: Alone) -> None:
    text = [3, 1, 4, 1, 5, 9, 2, 6]
    output = backend.prefill([PrefillRow(1, text, prompt_logprobs=True), PrefillRow(0, text[:3])])
    assert backend.info.can_score_prompt
    assert output.prompt_logprobs[1] is None
    every = alone(text).astype(np.float64)
    scored = zip(every, text[1:], strict=False)
    expected = [row[token] - np.log(np.exp(row - row.max()).sum()) - row.max() for row, token in scored]
    np.testing.assert_allclose(output.prompt_logprobs[0], expected, atol=2e-4)
    assert output.prompt_logprobs[0].dtype == np.float32
    np.testing.assert_allclose(output.logits[0], every[-1], atol=2e-4)


def test_the_caller_may_write_to_the_logits(backend: Backend, alone: Alone) -> None:
    logits = backend.prefill([PrefillRow(0, [1, 2, 3])]).logits
    logits[:] = 0
    logits = backend.decode([DecodeRow(0, 4, 3)]).logits
    np.testing.assert_allclose(logits[0], alone([1, 2, 3, 4])[-1], atol=2e-4)
    logits[:] = 0


# -- refusals ------------------------------------------------------------------------------------------------

REFUSED_PREFILLS: list[tuple[list[PrefillRow], type[Exception]]] = [
    ([PrefillRow(0, [])], errors.EmptyPromptError),
    ([PrefillRow(0, [1] * (T + 1))], errors.PromptTooLongError),
    ([PrefillRow(0, [1] * T)], errors.PromptTooLongError),
    ([PrefillRow(B, [1, 2])], errors.SlotOutOfRangeError),
    ([PrefillRow(-1, [1, 2])], errors.SlotOutOfRangeError),
    ([PrefillRow(0, [1, 2]), PrefillRow(0, [1, 2])], errors.SlotDuplicateError),
    ([PrefillRow(0, [1, V])], errors.TokenOutOfRangeError),
    ([PrefillRow(0, [-1, 1])], errors.TokenOutOfRangeError),
    ([PrefillRow(slot % B, [1, 2]) for slot in range(B + 1)], errors.BatchTooLargeError),
]
REFUSED_DECODES: list[tuple[list[DecodeRow], type[Exception]]] = [
    ([], errors.LiveSlotOmittedError),
    ([DecodeRow(1, 1, 3)], errors.LiveSlotOmittedError),
    ([DecodeRow(1, 1, 2), DecodeRow(2, 1, 4)], errors.PositionMismatchError),
    ([DecodeRow(1, 1, 0), DecodeRow(2, 1, 4)], errors.PositionMismatchError),
    ([DecodeRow(1, 1, -1), DecodeRow(2, 1, 4)], errors.PositionMismatchError),
    ([DecodeRow(1, 1, T), DecodeRow(2, 1, 4)], errors.PositionOverflowError),
    ([DecodeRow(1, 1, 3), DecodeRow(2, 1, 4), DecodeRow(0, 1, 1)], errors.SlotNotLiveError),
    ([DecodeRow(1, 1, 3), DecodeRow(2, 1, 4), DecodeRow(1, 1, 3)], errors.SlotDuplicateError),
    ([DecodeRow(1, 1, 3), DecodeRow(2, 1, 4), DecodeRow(B, 1, 0)], errors.SlotOutOfRangeError),
    ([DecodeRow(1, V, 3), DecodeRow(2, 1, 4)], errors.TokenOutOfRangeError),
]


@pytest.fixture
def busy(batch: Batch) -> Iterator[Batch]:
    """Slots 1 and 2 live; afterwards they must be as if the refused call had never been made."""
    batch.add((1, 3), (2, 4))
    yield batch
    batch.step()
    batch.add((0, 5))
    batch.step()


@pytest.mark.parametrize(("rows", "error"), REFUSED_PREFILLS, ids=lambda p: getattr(p, "__name__", None))
def test_refused_prefills_change_nothing(busy: Batch, rows: Any, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        busy.backend.prefill(rows)
    assert isinstance(caught.value, errors.BackendError)
    assert str(caught.value)


@pytest.mark.case(181, deviation=NO_SHARD_RPC)
@pytest.mark.parametrize(("rows", "error"), REFUSED_DECODES, ids=lambda p: getattr(p, "__name__", None))
def test_refused_decodes_change_nothing(busy: Batch, rows: Any, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        busy.backend.decode(rows)
    assert isinstance(caught.value, errors.BackendError)
    assert str(caught.value)


@pytest.mark.parametrize(
    ("slots", "error"),
    [
        ([0], errors.SlotNotLiveError),
        ([1, 0], errors.SlotNotLiveError),
        ([1, 1], errors.SlotDuplicateError),
        ([B], errors.SlotOutOfRangeError),
        ([-1], errors.SlotOutOfRangeError),
    ],
)
def test_refused_releases_change_nothing(busy: Batch, slots: list[int], error: type[Exception]) -> None:
    with pytest.raises(error):
        busy.backend.release(slots)


@each_insert
def test_an_insert_is_refused_for_live_slots_single_tokens_and_long_prompts(busy: Batch) -> None:
    with pytest.raises(errors.SlotBusyError):
        busy.backend.prefill([PrefillRow(0, [1, 2]), PrefillRow(1, [1, 2])])
    with pytest.raises(errors.OneTokenPromptError):
        busy.backend.prefill([PrefillRow(0, [1, 2]), PrefillRow(3, [1])])
    with pytest.raises(errors.PromptTooLongError):
        busy.backend.prefill([PrefillRow(0, [1] * (C + 1))])


@each_rebuild
def test_a_rebuild_is_refused_without_every_live_slot_or_with_another_history(busy: Batch) -> None:
    rows = [PrefillRow(slot, text) for slot, text in busy.texts.items()]
    with pytest.raises(errors.LiveSlotOmittedError):
        busy.backend.prefill([rows[0], PrefillRow(0, [1, 2])])
    with pytest.raises(errors.LiveSlotOmittedError):
        busy.backend.prefill([])
    for wrong in (rows[0].tokens[:-1], [*rows[0].tokens, 1]):  # a pending token lost, or counted twice
        with pytest.raises(errors.PositionMismatchError):
            busy.backend.prefill([replace(rows[0], tokens=wrong), rows[1]])


def test_a_closed_backend_refuses_everything(backend: Backend) -> None:
    backend.prefill([PrefillRow(0, [1, 2])])
    backend.close()
    backend.close()
    for call in (
        lambda: backend.prefill([PrefillRow(1, [1, 2])]),
        lambda: backend.decode([DecodeRow(0, 1, 2)]),
        lambda: backend.release([0]),
    ):
        with pytest.raises(errors.DeviceFailedError):
            call()
