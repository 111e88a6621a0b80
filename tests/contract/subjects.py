"""The names of the subjects, each loaded only when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from contract.subject import Subject

#: name -> "module:mapping from names to subjects". Those of ``hosts`` need an environment of their own.
PLACES: Mapping[str, str] = {
    **dict.fromkeys(("fake", "fake-poison"), "contract.cpu_subjects:SUBJECTS"),
    **dict.fromkeys(("cpu-fast", "cpu-fast-poison"), "contract.cpu_subjects:SUBJECTS"),
    **dict.fromkeys(("cpu-strict", "cpu-strict-clean"), "contract.cpu_subjects:SUBJECTS"),
    "nxd-0.4.5": "hosts.nxd.subject:SUBJECTS",
    "nxd-0.3.0": "hosts.nxd.subject:SUBJECTS",
    **dict.fromkeys(("legacy-0.0.28", "legacy-static-0.0.28"), "hosts.legacy.subject:SUBJECTS"),
}

#: Those that run where nothing is said: all that need no environment of their own.
DEFAULT = tuple(name for name, place in PLACES.items() if place.startswith("contract."))


def load_subject(name: str) -> Subject:
    """The subject of this name; raises ``KeyError`` for one that does not exist."""
    module, _, mapping = PLACES[name].partition(":")
    subjects: Mapping[str, Subject] = getattr(importlib.import_module(module), mapping)
    return subjects[name]
