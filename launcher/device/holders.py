"""Who has the Neuron devices open: a reserved core is unusable by others until that process ends."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.device.cores import VISIBLE, CoreRange, parse_visible_cores
from launcher.device.instances import CORES_PER_DEVICE
from launcher.device.rooted import entries, read
from neuron_server.errors import ConfigError

_NODE = re.compile(r"/dev/neuron(\d{1,4})")
#: The inode of the first PID namespace is a constant of the kernel (PROC_PID_INIT_INO).
_FIRST_NAMESPACE = "pid:[4026531836]"


@dataclass(frozen=True, slots=True)
class Holder:
    """A process and the devices (their numbers) it has open.

    ``visible``: the cores it was *started* with in NEURON_RT_VISIBLE_CORES; ``None``: not set, so that it
    reserves all, or closed to us.
    """

    pid: int
    name: str
    devices: tuple[int, ...]
    visible: CoreRange | None = None

    def cores(
        self, device_numbers: Sequence[int], cores_per_device: int = CORES_PER_DEVICE
    ) -> frozenset[int]:
        """What it holds at most: the cores it was started with, else all of the devices it has open.

        A container's cores are counted from 0 over the devices it was given, ``device_numbers``.
        """
        if self.visible is not None:
            return frozenset(range(self.visible.first, self.visible.last + 1))
        firsts = [n * cores_per_device for n, device in enumerate(device_numbers) if device in self.devices]
        return frozenset(core for first in firsts for core in range(first, first + cores_per_device))

    def __str__(self) -> str:
        devices = ", ".join(f"/dev/neuron{number}" for number in self.devices)
        started = f", started with {VISIBLE}={self.visible}" if self.visible else ""
        return f"process {self.pid} ({self.name}) has {devices} open{started}"


@dataclass(frozen=True, slots=True)
class Holders:
    """``processes``: those we can see. ``closed``: processes whose files are not ours to look at.

    ``whole_machine``: whether the processes of other containers would be visible; ``None``: unknown.
    """

    processes: tuple[Holder, ...] = ()
    closed: int = 0
    whole_machine: bool | None = None

    @property
    def blind_spots(self) -> str | None:
        """What cannot be seen from here, as a clause; ``None`` when everything can."""
        spots = []
        if self.closed:
            spots.append(f"{self.closed} processes of other users are closed to us (unknown; ask as root)")
        if not self.whole_machine:
            spots.append("processes of other containers and of the host are not visible from this container")
        if spots and self.whole_machine is None:
            spots[-1] = "processes of other containers may not be visible"
        return "; ".join(spots) or None


def holders(root: Path = Path("/")) -> Holders:
    """Look through /proc once; never raises. Our own process is not among them."""
    processes, closed = [], 0
    for name in entries(root, "/proc"):
        if not name.isdecimal() or (root == Path("/") and int(name) == os.getpid()):
            continue
        devices = _open_devices(root / "proc" / name / "fd")
        if devices is None:
            closed += 1
        elif devices:
            comm = "".join(c for c in read(root, f"/proc/{name}/comm").strip() if c.isprintable())
            processes.append(Holder(int(name), comm or "?", devices, _visible(root, name)))
    return Holders(tuple(sorted(processes, key=lambda p: p.pid)), closed, _whole_machine(root))


def _open_devices(fds: Path) -> tuple[int, ...] | None:
    """Numbers of the devices among the open files; ``None`` when they are closed to us."""
    found, refused = set(), False
    try:
        names = os.listdir(fds)
    except PermissionError:
        return None
    except OSError:  # it has ended
        return ()
    for name in names:
        try:
            match = _NODE.fullmatch(os.readlink(fds / name))
        except PermissionError:
            refused = True
            continue
        except OSError:
            continue
        if match:
            found.add(int(match.group(1)))
    return None if refused and not found else tuple(sorted(found))


def _visible(root: Path, pid: str) -> CoreRange | None:
    for entry in read(root, f"/proc/{pid}/environ").split("\0"):
        name, _, value = entry.partition("=")
        if name == VISIBLE:
            try:
                return parse_visible_cores(value)
            except ConfigError:
                return None
    return None


def _whole_machine(root: Path) -> bool | None:
    try:
        return os.readlink(root / "proc/self/ns/pid") == _FIRST_NAMESPACE
    except OSError:
        return None
