"""Reading small text files below a root, so that a test or a user can show us another machine."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from neuron_server.errors import ConfigError

#: The environment variable that names the root of the machine to look at.
ROOT_VARIABLE = "NEURON_TGI_ROOT"

#: More than any file holds that is read here (dpkg's has a few megabytes); a stray huge one is cut.
_MOST_BYTES = 32 * 2**20


def machine_root(environ: Mapping[str, str]) -> Path:
    """The machine that ``NEURON_TGI_ROOT`` names; this one, ``/``, when it is unset or empty.

    Raises ``ConfigError`` (rule ``argument``) when it is no directory: such a machine would look empty.
    """
    root = Path(environ.get(ROOT_VARIABLE) or "/")
    if not root.is_dir():
        raise ConfigError(
            f"{ROOT_VARIABLE} is {str(root)!r}, but must be a directory; unset it for this machine"
        )
    return root


def read(root: Path, name: str) -> str:
    """The text of the absolute path ``name`` below ``root``; empty when it is not there or closed to us."""
    with contextlib.suppress(OSError), (root / name.lstrip("/")).open("rb") as file:
        return file.read(_MOST_BYTES).decode(errors="replace")
    return ""


def entries(root: Path, name: str) -> tuple[str, ...]:
    """The names in a directory below ``root``, sorted; none when it is not there or closed to us."""
    with contextlib.suppress(OSError):
        return tuple(sorted(os.listdir(root / name.lstrip("/"))))
    return ()
