"""The Inferentia2 instances, in numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

CORES_PER_DEVICE = 2
#: Device memory of one core.
CORE_BYTES = 16 * 10**9

#: Tensor-parallel degrees that Inferentia2 documents; its topology check refuses others.
TENSOR_PARALLEL_DEGREES = (1, 2, 4, 8, 24)


@dataclass(frozen=True, slots=True)
class Instance:
    """``devices`` are chips of two cores; ``host_bytes`` is the memory of the machine."""

    name: str
    devices: int
    host_bytes: int

    @property
    def cores(self) -> int:
        """NeuronCores of all its devices."""
        return self.devices * CORES_PER_DEVICE


INSTANCES: Mapping[str, Instance] = {
    instance.name: instance
    for instance in (
        Instance("inf2.xlarge", 1, 16 * 2**30),
        Instance("inf2.8xlarge", 1, 128 * 2**30),
        Instance("inf2.24xlarge", 6, 384 * 2**30),
        Instance("inf2.48xlarge", 12, 768 * 2**30),
    )
}
