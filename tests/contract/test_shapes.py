"""Groups 17 to 19: one shape per graph, one call per prompt, every live slot in every step, no growth."""

from __future__ import annotations

import gc
import random
import sys
from collections.abc import Mapping
from itertools import pairwise

import pytest
import torch
from contract.checked_batch import Batch
from contract.subject import GraphCall, Subject
from contract.world import B, C, T

from neuron_server.backend import Backend, DecodeRow, PrefillRow

#: What a compiled graph takes. Static masks of the CPU's strict mode are float32.
TYPES = {"int32", "int64", "float32"}


def _drain(subject: Subject, backend: Backend) -> list[GraphCall]:
    assert subject.calls is not None
    return subject.calls(backend)


def _signature(inputs: Mapping[str, tuple[tuple[int, ...], str]]) -> tuple[object, ...]:
    return tuple(sorted(inputs.items()))


@pytest.mark.group(17)
def test_the_compiled_callable_sees_one_signature_per_graph(subject: Subject, batch: Batch) -> None:
    """Whatever enters, leaves and runs: prompts of all lengths, partial batches, one-token prompts."""
    batch.step(3)
    _drain(subject, batch.backend)
    calls: list[GraphCall] = []
    for slot, length in ((0, 2), (2, C), (1, C - 1)):
        batch.add((slot, length))
        calls += _drain(subject, batch.backend)
        batch.step()
        calls += _drain(subject, batch.backend)
        batch.free(slot)
    batch.step(0)
    batch.add((1, 5), (2, 9))
    batch.step()
    calls += _drain(subject, batch.backend)
    seen: dict[str, set[tuple[object, ...]]] = {}
    for call in calls:
        seen.setdefault(call.graph, set()).add(_signature(call.inputs))
        assert {dtype for _, dtype in call.inputs.values()} <= TYPES, call
    assert {graph: len(signatures) for graph, signatures in seen.items()} == dict.fromkeys(seen, 1)
    assert "decode" in seen
    decode = next(call for call in calls if call.graph == "decode")
    assert (B, 1) in {shape for shape, _ in decode.inputs.values()}
    for call in calls:
        if call.graph == "prefill":
            widths = {shape[-1] for shape, _ in call.inputs.values() if len(shape) == 2}
            assert widths & {C, T}, call


@pytest.mark.group(18)
@pytest.mark.only(mode="insert")
def test_a_prefill_is_one_call_per_prompt_and_a_step_one_call_with_every_live_slot(
    subject: Subject, batch: Batch
) -> None:
    rng = random.Random(5)
    for _ in range(25):
        free = [slot for slot in range(B) if slot not in batch.texts]
        full = [slot for slot, text in batch.texts.items() if len(text) == T]
        if full:
            batch.free(*full)
        elif free and rng.random() < 0.5:
            joining = rng.sample(free, rng.randint(1, len(free)))
            _drain(subject, batch.backend)
            batch.add(*((slot, rng.randint(2, C)) for slot in joining))
            assert [c.graph for c in _drain(subject, batch.backend)] == ["prefill"] * len(joining)
        elif batch.texts:
            _drain(subject, batch.backend)
            batch.step(*free[: rng.randint(0, 1)])
            calls = _drain(subject, batch.backend)
            assert [call.graph for call in calls] == ["decode"]
            if calls[0].slots is not None:
                assert set(batch.texts) <= set(calls[0].slots)


@pytest.mark.group(18)
@pytest.mark.only(mode="rebuild")
def test_a_rebuild_has_every_live_slot_and_so_has_every_step(subject: Subject, batch: Batch) -> None:
    batch.add((0, 5), (3, 2))
    _drain(subject, batch.backend)
    batch.add((1, 4))
    calls = _drain(subject, batch.backend)
    assert calls
    if not subject.shared_column:  # else all rows are fed together, as often as the model's graph demands
        together, one_by_one = ["prefill"], ["prefill"] * 3
        assert [call.graph for call in calls] in (together, one_by_one)
    for _ in range(3):
        batch.step()
        calls = _drain(subject, batch.backend)
        assert [call.graph for call in calls] == ["decode"]
        if calls[0].slots is not None:
            assert set(batch.texts) <= set(calls[0].slots)


def _objects(subject: Subject, backend: Backend) -> tuple[int, int]:
    """Blocks that Python has allocated, and bytes in all of torch's tensors that it knows."""
    if subject.calls is not None:
        subject.calls(backend)
    gc.collect()
    tensors = [o for o in gc.get_objects() if type(o) in (torch.Tensor, torch.nn.Parameter)]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sys.getallocatedblocks(), sum(storages.values())


def _serve(backend: Backend, steps: int) -> None:
    """``steps`` decodes of three slots, which are filled anew whenever they are full."""
    held: dict[int, int] = {}
    for _ in range(steps):
        if not held:
            backend.prefill([PrefillRow(slot, [1, 2, 3]) for slot in (2, 0, 1)])
            held = dict.fromkeys((2, 0, 1), 3)
        backend.decode([DecodeRow(slot, 5, length) for slot, length in held.items()])
        held = {slot: length + 1 for slot, length in held.items()}
        if held[0] == T:
            backend.release(list(held))
            held = {}
    if held:
        backend.release(list(held))


@pytest.mark.group(19)
def test_nothing_grows_over_1000_steps(subject: Subject, backend: Backend) -> None:
    """What is kept of every step shows in each quarter; what is kept once (a kernel, a cache) in one of them.

    One object kept per step would be 250 blocks a quarter; one tensor per step, at least 1000 bytes.
    """
    _serve(backend, 2 * (T - 3))
    gc.freeze()  # what is there already is not looked at again: a whole test run has millions of objects
    try:
        seen = [_objects(subject, backend)]
        for _ in range(4):
            _serve(backend, 250)
            seen.append(_objects(subject, backend))
    finally:
        gc.unfreeze()
    blocks, tensors = zip(*seen, strict=True)
    assert min(b - a for a, b in pairwise(blocks)) < 60, blocks
    assert min(b - a for a, b in pairwise(tensors)) < 500, tensors
