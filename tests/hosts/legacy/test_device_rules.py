"""What the real host half does to slots nobody named, and why our rules are what they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from contract.checked_batch import Batch
from contract.subject import Wanted
from hosts.legacy.subject import SUBJECTS
from hosts.legacy.tiny_model import alone

from neuron_server.backend import DecodeRow, PrefillRow
from neuron_server.shape import StaticShape

B, T, C = 4, 32, 20


def backend_of(name: str, batch_size: int = B, max_length: int = T) -> Any:
    return SUBJECTS[name].make(Wanted(StaticShape(batch_size, max_length), min(C, max_length - 1)))


def test_a_slot_left_out_of_a_step_runs_token_0_at_position_0_and_is_corrupted() -> None:
    backend = backend_of("legacy-0.0.28")
    texts = {0: [1, 2, 3, 4], 3: [5, 6, 7]}
    backend.prefill([PrefillRow(slot, text) for slot, text in texts.items()])
    model = vars(backend)["_model"]
    with torch.no_grad():  # slot 0 alone, which the backend itself would refuse
        model(torch.tensor([[9]]), torch.tensor([[4]]), torch.tensor([0]), return_dict=True)
    logits = backend.decode([DecodeRow(0, 9, 4), DecodeRow(3, 8, 3)]).logits
    np.testing.assert_allclose(logits[0], alone("llama", [1, 2, 3, 4, 9])[-1], atol=2e-4)
    assert np.abs(logits[1] - alone("llama", [5, 6, 7, 8])[-1]).max() > 0.01


def test_a_one_token_prompt_by_prefill_would_corrupt_every_other_slot() -> None:
    """It runs the decode graph, so our backend takes it by a decode of all live slots only."""
    backend = backend_of("legacy-0.0.28")
    backend.prefill([PrefillRow(3, [5, 6, 7])])
    model = vars(backend)["_model"]
    one = torch.ones(1, 1, dtype=torch.int64)
    inputs = model.prepare_inputs_for_prefill(one, one, seq_ids=torch.tensor([1]))
    backend_calls = SUBJECTS["legacy-0.0.28"].calls
    assert backend_calls is not None
    backend_calls(backend)
    with torch.no_grad():
        model(**inputs, return_dict=True)
    assert [call.graph for call in backend_calls(backend)] == ["decode"]
    logits = backend.decode([DecodeRow(3, 8, 3)]).logits
    assert np.abs(logits[0] - alone("llama", [5, 6, 7, 8])[-1]).max() > 0.01


def test_a_prefill_runs_one_graph_as_wide_as_the_sequence_for_each_prompt() -> None:
    backend = backend_of("legacy-0.0.28")
    output = backend.prefill([PrefillRow(2, [1, 2]), PrefillRow(0, [3] * C)])
    drain = SUBJECTS["legacy-0.0.28"].calls
    assert drain is not None
    calls = drain(backend)
    assert [(call.graph, call.slots) for call in calls] == [("prefill", (2,)), ("prefill", (0,))]
    assert {call.inputs["hidden"] for call in calls} == {((1, T, 32), "float32")}
    assert output.positions == 2 * T


def test_one_slot_is_static_on_the_real_host_code_too() -> None:
    """llama with one slot has no continuous batching: one row, one column, no padding; 1 token or 31."""
    backend = backend_of("legacy-0.0.28", batch_size=1)
    assert backend.info.prefill_mode == "rebuild"
    batch = Batch(backend, SUBJECTS["legacy-0.0.28"].alone)
    for length in (1, 2, C, 5):
        batch.add((0, length))
        while len(batch.texts[0]) < T:
            batch.step()
        batch.free(0)
    batch.step(0)
    batch.step()
    batch.check(0)


def test_a_step_at_the_end_of_the_cache_rebuilds_from_the_texts_and_says_what_it_cost() -> None:
    backend = backend_of("legacy-static-0.0.28", max_length=12)
    batch = Batch(backend, SUBJECTS["legacy-static-0.0.28"].alone)
    batch.add((0, 10), (1, 2))
    batch.step()
    batch.step()
    batch.free(0)  # the longest, which has used the whole cache; slot 1 holds 4 tokens
    drain = SUBJECTS["legacy-static-0.0.28"].calls
    assert drain is not None
    drain(backend)
    output = backend.decode([DecodeRow(1, 7, 4)])
    text = [*batch.texts[1], 7]
    np.testing.assert_allclose(output.logits[0], alone("gpt2", text)[-1], atol=2e-4)
    assert output.positions == B * 4 + B
    assert len(drain(backend)) == 4 + 1
    assert backend.decode([DecodeRow(1, 7, 5)]).positions == B
