"""The end of a whole process group: a device stays taken until the last process that has it open is gone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from pathlib import Path

_POLL_S = 0.02


def members(leader: int, root: Path = Path("/")) -> list[int]:
    """Processes in the group or session that ``leader`` led; those that only wait to be reaped are gone.

    Empty where there is no /proc to look into.
    """
    found = []
    with contextlib.suppress(OSError):
        for name in os.listdir(root / "proc"):
            if name.isdigit() and _belongs(root / "proc" / name / "stat", leader):
                found.append(int(name))
    return found


def _belongs(stat: Path, leader: int) -> bool:
    """Fields after the name, which may hold anything: state, parent, group, session (proc(5))."""
    try:
        fields = stat.read_text(errors="replace").rpartition(")")[2].split()
    except OSError:  # it ended meanwhile
        return False
    return len(fields) > 3 and fields[0] not in "ZX" and str(leader) in fields[2:4]


async def end(leader: int, timeout_s: float) -> list[int]:
    """SIGKILL for all that is left of it, until nothing is; those still there after ``timeout_s``.

    A process that waits inside the kernel, for a device that does not answer, cannot be ended by anybody.
    """
    deadline = time.monotonic() + timeout_s
    while (left := members(leader)) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(_POLL_S)
    return left
