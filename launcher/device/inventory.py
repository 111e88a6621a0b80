"""What Neuron hardware can be seen from here, whatever the vendor's tools say or are missing."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.device.cores import CoreRange


@dataclass(frozen=True, slots=True)
class Inventory:
    """``devices``: chips in /dev that belong to the driver. ``instance_type``: ``inf2.8xlarge``.

    ``cores``: what the devices have and ``NEURON_RT_*`` leaves; ``None`` without a device. ``driver``: the
    version of the host's kernel module. What cannot be known is ``None``.
    """

    devices: int = 0
    instance_type: str | None = None
    cores: CoreRange | None = None
    driver: str | None = None
