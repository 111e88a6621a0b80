"""What one check found, and how it is told."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from neuron_server.errors import ConfigError, ModelError


class Status(str, Enum):
    """``FAIL`` stands out: it is what keeps the server from starting, or from answering."""

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. ``found`` and ``fix`` are parts of a sentence; no ``fix``: nothing to do."""

    check: str
    status: Status
    found: str
    fix: str | None = None

    def __str__(self) -> str:
        line = f"{self.status.value:<4}  {self.check}: {self.found}"
        return " ".join((line if self.fix is None else f"{line} -> {self.fix}").split("\n"))

    def as_json(self) -> dict[str, str | None]:
        """The object of ``--json``."""
        return {"check": self.check, "status": self.status.value, "found": self.found, "fix": self.fix}


def ok(check: str, found: str) -> Finding:
    """Nothing to do."""
    return Finding(check, Status.OK, found)


def warn(check: str, found: str, fix: str | None = None) -> Finding:
    """Worth knowing; the server starts all the same."""
    return Finding(check, Status.WARN, found, fix)


def fail(check: str, found: str, fix: str | None = None) -> Finding:
    """Keeps the server from starting or answering."""
    return Finding(check, Status.FAIL, found, fix)


def of_error(check: str, error: ConfigError | ModelError, status: Status = Status.FAIL) -> Finding:
    """An error of the launcher's own; its remedy stands after the last colon, where it has one."""
    found, colon, fix = str(error).rpartition(": ")
    if not colon or error.rule in ("config_corrupt", "weights_corrupt", "model"):  # there it is the cause
        return Finding(check, status, str(error))
    return Finding(check, status, found, fix)
