"""Findings of one check on one machine, as lines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from launcher.doctor.case import Case
from launcher.doctor.finding import Finding
from launcher.parameters import Parameters, Value


def case(root: Path, environ: Mapping[str, str] | None = None, **values: Value) -> Case:
    """``values`` are flags."""
    return Case(Parameters.of(**values), {"HOME": "/home/user", **(environ or {})}, root)


def lines(
    check: Callable[[Case], Iterable[Finding]],
    root: Path,
    environ: Mapping[str, str] | None = None,
    **values: Value,
) -> list[str]:
    """What the check says, a line for each finding."""
    return [str(finding) for finding in check(case(root, environ, **values))]
