"""The names of the columns, and the subjects of each, loaded only when they are asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from contract.subject import Subject

#: column -> "module:mapping from names to subjects". Those of ``hosts`` need an environment of their own.
PLACES: Mapping[str, str] = {
    **dict.fromkeys(("fake", "cpu-fast", "cpu-strict", "tokens"), "contract.cpu_subjects:SUBJECTS"),
    **dict.fromkeys(("nxd-0.4.5", "nxd-0.3.0"), "hosts.nxd.subject:SUBJECTS"),
    "legacy-0.0.28": "hosts.legacy.subject:SUBJECTS",
}

#: Those that run where nothing is said: all that need no environment of their own.
DEFAULT = tuple(name for name, place in PLACES.items() if place.startswith("contract."))


def column_of(subject: Subject) -> str:
    """Where its results count."""
    return subject.name if subject.column is None else subject.column


def load_subjects(column: str) -> list[Subject]:
    """The subjects that count for this column; raises ``KeyError`` for one that does not exist."""
    module, _, mapping = PLACES[column].partition(":")
    subjects: Mapping[str, Subject] = getattr(importlib.import_module(module), mapping)
    return [subject for subject in subjects.values() if column_of(subject) == column]
