"""Printing a report: whole, whatever the terminal's encoding, without a traceback when nobody takes it."""

from __future__ import annotations

import os
import sys

from neuron_server.errors import ConfigError


def open_closed_streams() -> None:
    """Stand-ins for standard streams that the caller closed, which Python has as ``None``."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 for good


def print_report(text: str) -> None:
    """Write ``text`` to stdout; what its encoding lacks is escaped. A reader that left (``| head``) is fine.

    Raises ``ConfigError`` (rule ``argument``) when it cannot be written: a full disk.
    """
    out = sys.stdout
    encoding = out.encoding or "utf-8"
    try:
        out.write(text.encode(encoding, errors="backslashreplace").decode(encoding))
        out.flush()
    except BrokenPipeError:
        _discard()
    except OSError as error:
        _discard()
        raise ConfigError(f"the report cannot be written to stdout: {error.strerror}") from error


def _discard() -> None:
    """Lead what is still buffered nowhere, or Python fails over it once more when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
