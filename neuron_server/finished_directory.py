"""Directories that take long to fill and must never be seen half full.

They are filled under a name of the process that fills them and renamed when they are complete; what a killed
process left is swept away by the next one. A receipt inside tells what is in them, with sizes. Several
machines or containers may share the place: a process is known by its host's name and its number.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

RECEIPT = "neuronx_tgi_export.json"
_PARTIAL = ".partial-"
#: Nothing takes that long; what another host left is swept then.
_ABANDONED_S = 2 * 24 * 3600


@contextmanager
def filling(final: Path) -> Iterator[Path]:
    """A new directory to fill, which becomes ``final`` at the end; on any exception it is removed.

    Raises ``FileExistsError`` when ``final`` exists and is not empty, at the start as at the end: whoever was
    first keeps it. Other ``OSError`` as they come.
    """
    _refuse_full(final)
    sweep(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    partial = final.with_name(f".{final.name}{_PARTIAL}{_host()}-{os.getpid()}")
    partial.mkdir()
    try:
        yield partial
        _refuse_full(final)
        os.replace(partial, final)  # onto an empty directory, too
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _refuse_full(final: Path) -> None:
    if final.exists() and (not final.is_dir() or any(final.iterdir())):
        raise FileExistsError(f"{final} exists already and is not an empty directory")


def sweep(final: Path) -> None:
    """Remove what processes that are gone left beside ``final``."""
    if not final.parent.is_dir():
        return
    prefix = f".{final.name}{_PARTIAL}"
    for name in os.listdir(final.parent):
        if name.startswith(prefix) and _abandoned(final.parent / name, name.removeprefix(prefix)):
            shutil.rmtree(final.parent / name, ignore_errors=True)


def _abandoned(partial: Path, owner: str) -> bool:
    host, _, pid = owner.rpartition("-")
    if host == _host():
        return not _runs(pid)
    with contextlib.suppress(OSError):
        return time.time() - partial.stat().st_mtime > _ABANDONED_S
    return False


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9.]", "_", platform.node())


def write_receipt(directory: Path, about: Mapping[str, Any]) -> None:  # Any: JSON
    """Say what the directory is, and list its files with their sizes in bytes (not those of linked ones)."""
    sizes = {str(f.relative_to(directory)): f.stat().st_size for f in _files(directory)}
    (directory / RECEIPT).write_text(json.dumps({**about, "files": sizes}, indent=2) + "\n")


def read_receipt(directory: Path) -> dict[str, Any] | None:  # Any: JSON
    """What ``write_receipt`` said; ``None`` without it, or when a file it lists is not there in its size."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        about = json.loads((directory / RECEIPT).read_bytes())
        if isinstance(about, dict) and isinstance(files := about.get("files"), dict):
            whole = all((directory / name).stat().st_size == size for name, size in files.items())
            return about if whole else None
    return None


def _files(directory: Path) -> Iterator[Path]:
    return (f for f in sorted(directory.rglob("*")) if f.is_file() and f.name != RECEIPT)


def _runs(pid: str) -> bool:
    if not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
