"""What the launcher needs to know of the machine: memory, Neuron devices, and who holds a port."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from launcher.device import inventory
from launcher.device.inventory import Inventory
from launcher.device.rooted import read

_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
_LISTEN = "0A"


@dataclass(frozen=True, slots=True)
class Host:
    """``available_bytes``: memory a new process may take. ``inventory``: of Neuron hardware.

    ``processors``: logical processors that this process may use. ``None``: unknown.
    """

    available_bytes: int | None = None
    inventory: Inventory = field(default_factory=Inventory)
    processors: int | None = None

    @property
    def neuron_devices(self) -> int:
        """Chips that can be seen from here."""
        return self.inventory.devices


def inspect(root: Path = Path("/"), environ: Mapping[str, str] = MappingProxyType({})) -> Host:
    """The machine at ``root`` as it is now; ``environ`` may narrow its cores (``NEURON_RT_*``)."""
    return Host(
        available_bytes=_available(root),
        inventory=inventory.inspect(root, environ),
        processors=_processors(root),
    )


def _processors(root: Path) -> int | None:
    """Those of the kernel's list or of our affinity, as far as the container's share of time goes."""
    if root == Path("/") and hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = len(re.findall(r"^processor\s*:", read(root, "/proc/cpuinfo"), re.MULTILINE))
    share = re.fullmatch(r"(\d+) (\d+)", read(root, "/sys/fs/cgroup/cpu.max").strip())
    if share and int(share.group(2)):
        count = min(count, max(1, round(int(share.group(1)) / int(share.group(2)))))
    return count or None


def _available(root: Path) -> int | None:
    """The smaller of the kernel's MemAvailable and what the container's limit leaves."""
    limits = [limit for limit in (_mem_available(root), _cgroup_left(root)) if limit is not None]
    return min(limits) if limits else None


def _mem_available(root: Path) -> int | None:
    match = re.search(r"^MemAvailable:\s+(\d+) kB", read(root, "/proc/meminfo"), re.MULTILINE)
    return int(match.group(1)) * 1024 if match else None


def _cgroup_left(root: Path) -> int | None:
    """Limit minus usage of this container's cgroup, version 2 or 1; page cache counts as free.

    The cache is given back under pressure, and a freshly downloaded model fills it.
    """
    for limit_file, usage_file in _CGROUPS:
        limit, usage = (read(root, name).strip() for name in (limit_file, usage_file))
        if limit.isdigit() and usage.isdigit():
            stat = read(root, str(Path(limit_file).with_name("memory.stat")))
            match = re.search(r"^(?:total_)?inactive_file (\d+)", stat, re.MULTILINE)
            return max(0, int(limit) - int(usage) + (int(match.group(1)) if match else 0))
    return None


def port_holder(port: int, root: Path = Path("/")) -> str | None:
    """``process 123 (python)`` that listens on ``port``; ``None`` when it cannot be seen from here."""
    inodes = {
        inode for name in ("tcp", "tcp6") for inode in _listening(read(root, f"/proc/net/{name}"), port)
    }
    for process in (root / "proc").glob("[0-9]*") if inodes else ():
        with contextlib.suppress(OSError):  # processes end, and those of other users are closed to us
            for fd in (process / "fd").iterdir():
                match = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(fd))
                if match and match.group(1) in inodes:
                    return f"process {process.name} ({read(process, '/comm').strip()})"
    return None


def _listening(table: str, port: int) -> list[str]:
    """Inodes of the listening sockets on ``port`` in one of the kernel's tables."""
    rows = (line.split() for line in table.splitlines()[1:])
    return [
        row[9]
        for row in rows
        if len(row) > 9 and row[3] == _LISTEN and int(row[1].rpartition(":")[2], 16) == port
    ]
