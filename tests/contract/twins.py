"""Two batches that are told the same, so that a wrong call to one of them shows in what it says next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from contract.checked_batch import Batch


@dataclass
class Twins:
    """Only the backend of ``first`` is told something wrong."""

    first: Batch
    second: Batch

    def both(self, work: Callable[[Batch], None]) -> None:
        for batch in (self.first, self.second):
            work(batch)

    def compare(self) -> None:
        """Each said the same of every row, to the bit."""
        assert self.first.texts == self.second.texts
        assert self.first.seen.keys() == self.second.seen.keys()
        for slot, outputs in self.first.seen.items():
            for length, row in outputs.items():
                np.testing.assert_array_equal(row, self.second.seen[slot][length])
