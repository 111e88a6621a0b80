"""NeuronCores: which ones this process may use, and how they are shared out to replicas."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CoreRange:
    """``count`` cores from ``first`` on; the runtime wants them contiguous and ascending."""

    first: int
    count: int

    def __str__(self) -> str:
        """The form of ``NEURON_RT_VISIBLE_CORES``: ``4``, or ``0-7``."""
        return str(self.first) if self.count == 1 else f"{self.first}-{self.first + self.count - 1}"
