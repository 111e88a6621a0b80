"""What the launcher needs to know of the machine: memory, Neuron devices, and who holds a port."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
_LISTEN = "0A"


@dataclass(frozen=True, slots=True)
class Host:
    """``available_bytes``: memory a new process may take (``None``: unknown). ``neuron_devices``: in /dev."""

    available_bytes: int | None = None
    neuron_devices: int = 0


def inspect(root: Path = Path("/")) -> Host:
    """The machine as it is now. ``root`` is for tests."""
    return Host(available_bytes=_available(root), neuron_devices=_neuron_devices(root))


def _neuron_devices(root: Path) -> int:
    """Entries ``neuron<digits>`` in /dev; the driver makes one per chip."""
    with contextlib.suppress(OSError):
        return sum(bool(re.fullmatch(r"neuron\d+", name)) for name in os.listdir(root / "dev"))
    return 0


def _available(root: Path) -> int | None:
    """The smaller of the kernel's MemAvailable and what the container's limit leaves."""
    limits = [limit for limit in (_mem_available(root), _cgroup_left(root)) if limit is not None]
    return min(limits) if limits else None


def _mem_available(root: Path) -> int | None:
    match = re.search(r"^MemAvailable:\s+(\d+) kB", _read(root / "proc/meminfo"), re.MULTILINE)
    return int(match.group(1)) * 1024 if match else None


def _cgroup_left(root: Path) -> int | None:
    """Limit minus usage of this container's cgroup, version 2 or 1; page cache counts as free.

    The cache is given back under pressure, and a freshly downloaded model fills it.
    """
    for limit_file, usage_file in _CGROUPS:
        limit, usage = (_read(root / name.lstrip("/")).strip() for name in (limit_file, usage_file))
        if limit.isdigit() and usage.isdigit():
            stat = _read((root / limit_file.lstrip("/")).with_name("memory.stat"))
            match = re.search(r"^(?:total_)?inactive_file (\d+)", stat, re.MULTILINE)
            return max(0, int(limit) - int(usage) + (int(match.group(1)) if match else 0))
    return None


def port_holder(port: int, root: Path = Path("/")) -> str | None:
    """``process 123 (python)`` that listens on ``port``; ``None`` when it cannot be seen from here."""
    inodes = {inode for name in ("tcp", "tcp6") for inode in _listening(root / "proc/net" / name, port)}
    for process in (root / "proc").glob("[0-9]*") if inodes else ():
        with contextlib.suppress(OSError):  # processes end, and those of other users are closed to us
            for fd in (process / "fd").iterdir():
                match = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(fd))
                if match and match.group(1) in inodes:
                    return f"process {process.name} ({_read(process / 'comm').strip()})"
    return None


def _listening(table: Path, port: int) -> list[str]:
    """Inodes of the listening sockets on ``port`` in one of the kernel's tables."""
    rows = (line.split() for line in _read(table).splitlines()[1:])
    return [
        row[9]
        for row in rows
        if len(row) > 9 and row[3] == _LISTEN and int(row[1].rpartition(":")[2], 16) == port
    ]


def _read(path: Path) -> str:
    """The file's text; empty when it is not there."""
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace")
    return ""
