"""What a program and its launcher owe each other at the end: no orphans, and a telling exit code.

Rank 0, standard library only: the launcher reads the codes, the programs hold the line.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from enum import IntEnum

#: Set by the launcher for the programs it starts, to its own process id. Absent when started by hand.
PARENT_PID_VARIABLE = "NEURON_TGI_PARENT_PID"

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_POLL_S = 0.5


class ExitCode(IntEnum):
    """How a program says why it ended; the launcher turns these into its own words and codes."""

    OK = 0
    INTERNAL = 1
    USAGE = 2
    """A command line or setting that cannot work (argparse's own code)."""
    MODEL = 3
    """The model cannot be loaded; a restart would fail the same way."""
    DEVICE = 4
    """The device failed under way; a restart may help."""
    ADDRESS = 6
    """The router cannot listen where it was told to."""


def die_with_parent() -> None:
    """Have this process get SIGTERM when the launcher dies, however it dies (``kill -9`` included).

    Does nothing unless ``NEURON_TGI_PARENT_PID`` is set. To be called first thing, in the main thread. A
    parent that died before the call is noticed too: the process then ends itself at once. On Linux the kernel
    sends the signal when the *thread* that started this process ends, so a launcher must start programs from
    a thread that lives as long as itself.
    """
    text = os.environ.get(PARENT_PID_VARIABLE)
    if text is None:
        return
    try:
        parent = int(text)
    except ValueError:
        sys.exit(f"{PARENT_PID_VARIABLE} is {text!r}; it must be the launcher's process id, or unset")
    if not _signal_on_parent_death():
        threading.Thread(target=_watch, args=(parent,), name="lifeline", daemon=True).start()
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


def _signal_on_parent_death() -> bool:
    """Ask the kernel (Linux only); False where it cannot."""
    if sys.platform != "linux":
        return False
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        return bool(libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0) == 0)
    except (OSError, AttributeError):  # a C library without prctl
        return False


def _watch(parent: int) -> None:
    """The portable way: an orphan is adopted, so its parent's id changes."""
    while os.getppid() == parent:
        time.sleep(_POLL_S)
    os.kill(os.getpid(), signal.SIGTERM)
