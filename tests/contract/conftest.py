"""The fixtures of the contract tests: a backend in its world, and a batch that checks its rows."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from contract.checked_batch import Alone, Batch
from contract.subject import Subject
from contract.world import World

from neuron_server.backend import Backend


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def subject(world: World) -> Subject:
    return world.subject


@pytest.fixture
def alone(subject: Subject) -> Alone:
    """Logits (L, V) after each token of a text that nothing else shares a batch with."""
    return subject.alone


@pytest.fixture
def backend(world: World) -> Iterator[Backend]:
    """Of the usual shape: 4 slots of 32 tokens, prompts up to 20."""
    backend = world.make()
    yield backend
    backend.close()


@pytest.fixture
def batch(backend: Backend, alone: Alone) -> Iterator[Batch]:
    """Its rows are compared with the same text alone when a slot is freed or the test ends."""
    batch = Batch(backend, alone)
    yield batch
    for slot in batch.texts:
        batch.check(slot)
