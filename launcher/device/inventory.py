"""What Neuron hardware can be seen from here, whatever the vendor's tools say or are missing.

The devices are counted as optimum-neuron counts them: the driver's major number from ``/proc/devices``, then
the character devices of that major directly in ``/dev``.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from launcher.device.cores import CoreRange, available
from launcher.device.instances import CORES_PER_DEVICE
from launcher.device.rooted import entries, read
from neuron_server.errors import ConfigError

_MAJOR = re.compile(r"^\s*(\d+)\s+neuron\s*$", re.MULTILINE)
_NODE = re.compile(r"neuron(\d{1,4})", re.ASCII)
_VERSION = re.compile(r"\d+(\.\d+)+[\w.+~-]*", re.ASCII)
#: ``inf2.48xlarge``; a virtual machine elsewhere says something like ``Standard PC (i440FX)``.
_INSTANCE = re.compile(r"[a-z][a-z0-9-]*\.[a-z0-9-]+")
#: Families whose devices do not have Inferentia2's number of cores (trn2: virtual cores, its default).
_OTHER_CORES = {"inf1": 4, "trn2": 4, "trn2u": 4}


@dataclass(frozen=True, slots=True)
class Inventory:
    """``devices``: chips in /dev that belong to the driver. ``instance_type``: ``inf2.8xlarge``.

    ``cores``: what the devices have and ``NEURON_RT_*`` leaves; ``None`` without a device, and when those
    variables are wrong, which ``cores_problem`` then explains. ``driver``: the version of the host's kernel
    module. ``driver_loaded``: whether the kernel lists it. ``device_numbers``: the n of /dev/neuron<n>; core
    0 is the first of the lowest. ``stale_nodes``: /dev/neuron* that no loaded driver stands behind. What
    cannot be known is ``None``.
    """

    devices: int = 0
    instance_type: str | None = None
    cores: CoreRange | None = None
    driver: str | None = None
    driver_loaded: bool = False
    device_numbers: tuple[int, ...] = ()
    stale_nodes: int = 0
    cores_problem: str | None = None

    @property
    def family(self) -> str | None:
        """``inf2`` of ``inf2.8xlarge``."""
        return None if self.instance_type is None else self.instance_type.partition(".")[0]

    @property
    def total_cores(self) -> int:
        """NeuronCores of all devices, whatever the runtime's variables say."""
        return self.devices * _OTHER_CORES.get(self.family or "", CORES_PER_DEVICE)

    def usable_cores(self) -> CoreRange:
        """``cores``; raises ``ConfigError`` (rule ``no_neuron_device`` or ``neuron_cores``) without."""
        if self.cores is not None:
            return self.cores
        if self.cores_problem is not None:
            raise ConfigError(self.cores_problem, rule="neuron_cores")
        raise ConfigError(self.no_device(), rule="no_neuron_device")

    def no_device(self) -> str:
        """Why there is no device, as far as it can be seen, and what to do."""
        return ": ".join(self.absence)

    @property
    def absence(self) -> tuple[str, str]:
        """The two halves of ``no_device``."""
        if self.stale_nodes:
            return (
                f"{self.stale_nodes} Neuron device file(s) are in /dev, but the kernel has no neuron driver",
                "install and load it on the host (apt-get install aws-neuronx-dkms; modprobe neuron)",
            )
        if self.driver_loaded:
            return (
                "the host has the neuron driver, but no Neuron device can be seen from here",
                "give the container its devices (docker run --device=/dev/neuron0; in Kubernetes the "
                "resource aws.amazon.com/neuron)",
            )
        return (
            "no Neuron device can be seen from here",
            "use an inf2 instance with the driver (aws-neuronx-dkms) installed on the host, or --backend cpu",
        )


def inspect(root: Path, environ: Mapping[str, str]) -> Inventory:
    """The Neuron hardware of the machine at ``root``; reads a handful of small files, never raises.

    Where /proc/devices cannot be read at all, files named ``neuron<digits>`` are counted, as optimum-neuron
    0.0.x does. Below a root other than ``/`` nobody can make device nodes without privileges, so there plain
    files of that name stand for them; on the real machine only character devices count.
    """
    listing = read(root, "/proc/devices")
    match = _MAJOR.search(listing)
    nodes = _nodes(root, int(match.group(1)) if match else None)
    alive = nodes if match or not listing else []
    found = Inventory(
        devices=len(alive),
        instance_type=_instance_type(root),
        driver=_driver(root),
        driver_loaded=match is not None,
        device_numbers=tuple(sorted(int(m.group(1)) for m in map(_NODE.fullmatch, alive) if m)),
        stale_nodes=len(nodes) - len(alive),
    )
    if not found.total_cores:
        return found
    try:
        return replace(found, cores=available(found.total_cores, environ))
    except ConfigError as error:
        return replace(found, cores_problem=str(error))


def _nodes(root: Path, major: int | None) -> list[str]:
    """Devices of the driver directly in /dev; by name where its major number is not known."""
    nodes = []
    for name in entries(root, "/dev"):
        with contextlib.suppress(OSError):  # a device may be taken away while we look
            info = os.stat(root / "dev" / name)
            counts = bool(_NODE.fullmatch(name))
            if stat.S_ISCHR(info.st_mode):
                counts = counts if major is None else os.major(info.st_rdev) == major
            elif not stat.S_ISREG(info.st_mode) or root == Path("/"):
                counts = False
            nodes += [name] if counts else []
    return nodes


def _instance_type(root: Path) -> str | None:
    name = read(root, "/sys/devices/virtual/dmi/id/product_name").strip()
    return name if _INSTANCE.fullmatch(name) else None


def _driver(root: Path) -> str | None:
    """Version of the loaded kernel module; ``None`` too when the file holds no version."""
    version = read(root, "/sys/module/neuron/version").strip()
    return version if len(version) < 100 and _VERSION.fullmatch(version) else None
