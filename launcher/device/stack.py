"""Which Neuron software is installed beside us, read from package metadata and files; nothing is imported."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stack:
    """Versions as their packages spell them; ``None`` for what is not installed.

    ``runtime`` is that of the runtime library (``libnrt``), which lives in the container, while the driver is
    the host's.
    """

    optimum_neuron: str | None = None
    compiler: str | None = None
    torch_neuronx: str | None = None
    transformers_neuronx: str | None = None
    runtime: str | None = None
