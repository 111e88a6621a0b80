"""Group 8: what no one thought of. The naive model is the list of texts; every row is compared with it."""

from __future__ import annotations

import random

import pytest
from contract.checked_batch import Batch
from contract.world import B, C, T


@pytest.mark.group(8)
def test_random_schedule_of_500_operations(batch: Batch) -> None:
    rng = random.Random(11)
    rebuild = batch.backend.info.prefill_mode == "rebuild"
    done = 0
    while done < 500:
        done += 1
        free = [s for s in range(B) if s not in batch.texts]
        full = [s for s, text in batch.texts.items() if len(text) == T]
        rng.shuffle(free)
        choice = rng.random()
        if full:
            batch.free(*full)
        elif choice < 0.25 and free:
            joining = free[: rng.randint(1, len(free))]
            batch.add(*((s, rng.randint(1 if rebuild else 2, C)) for s in joining))
        elif choice < 0.4 and batch.texts:
            batch.free(*rng.sample(sorted(batch.texts), rng.randint(1, len(batch.texts))))
        elif choice < 0.5 and free:
            batch.step(*free[:1])
        elif batch.texts:
            batch.step()
        else:
            done -= 1  # nothing is live and nothing was to join
