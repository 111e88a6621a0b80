"""Groups 1 to 7: every row of a batch equals the same text alone, whatever shares the batch with it."""

from __future__ import annotations

import pytest
from contract.checked_batch import Batch
from contract.world import C


@pytest.mark.group(1)
def test_batched_equals_alone(batch: Batch) -> None:
    batch.add((0, 3), (1, 9), (2, 5), (3, 7))
    for _ in range(6):
        batch.step()


@pytest.mark.group(1)
def test_uneven_prompts_enter_in_any_order_of_slots(batch: Batch) -> None:
    batch.add((3, C), (0, 2), (2, C - 1))
    for _ in range(5):
        batch.step()
