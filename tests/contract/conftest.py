"""The fixtures of the contract tests: a backend in its world, and a batch that checks its rows."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from contract.checked_batch import Alone, Batch
from contract.subject import Subject
from contract.twins import Twins
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


@pytest.fixture
def twins(world: World) -> Iterator[Twins]:
    """Slots 1 and 2 live. In the end both say the same, to the bit, and what the texts say alone."""
    backends = [world.make(), world.make()]
    twins = Twins(*(Batch(backend, world.subject.alone) for backend in backends))
    twins.both(lambda batch: batch.add((1, 3), (2, 4)))
    yield twins
    twins.both(lambda batch: batch.step())
    twins.both(lambda batch: batch.add((0, 5)))
    twins.both(lambda batch: batch.step())
    twins.compare()
    twins.first.free(*twins.first.texts)
    for backend in backends:
        backend.close()
