"""What the tests of a run showed, kept as ``build/contract/COLUMN.json`` for the matrix."""

from __future__ import annotations

import json
import platform
from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

import pytest
from contract.subject import Subject
from contract.subjects import column_of

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "build" / "contract"

#: The file of what counts for every column, since it needs no backend.
EVERY = "every-column"

#: Distributions whose versions say what a column ran on.
NAMED = ("torch", "transformers", "optimum-neuron")


class Recorder:
    """Passed and failed tests by column and group; a skipped test shows nothing."""

    def __init__(self, asked: Sequence[str]) -> None:
        self.asked = tuple(asked)
        self.subjects: Sequence[Subject] = ()
        #: column -> group -> outcome -> tests
        self._seen: dict[str, dict[int, dict[str, set[str]]]] = defaultdict(
            lambda: defaultdict(lambda: {"passed": set(), "failed": set()})
        )

    def take(self, report: pytest.TestReport) -> None:
        """A failure of set-up or teardown is one of the test."""
        if report.outcome == "skipped" or (report.when != "call" and report.outcome == "passed"):
            return
        for name, value in report.user_properties:
            if name == "group":
                numbers, column = value
                for number in numbers:
                    self._seen[column or EVERY][number][report.outcome].add(report.nodeid)

    def write(self) -> bool:
        """One file for each column of which any test ran; whether there was one. Other files stay."""
        RESULTS.mkdir(parents=True, exist_ok=True)
        for column in self._seen:
            (RESULTS / f"{column}.json").write_text(json.dumps(self._column(column), indent=1) + "\n")
        return bool(self._seen)

    def _column(self, column: str) -> Mapping[str, object]:
        subjects = [subject for subject in self.subjects if column_of(subject) == column]
        groups = {
            str(number): {
                "passed": len(tests["passed"] - tests["failed"]),
                "failed": sorted(tests["failed"]),
            }
            for number, tests in sorted(self._seen[column].items())
        }
        nowhere = set.intersection(*(set(s.not_applicable) for s in subjects)) if subjects else set()
        return {
            "column": column,
            "subjects": [subject.name for subject in subjects],
            "environment": _environment(),
            "groups": groups,
            "not_applicable": {str(number): subjects[0].not_applicable[number] for number in sorted(nowhere)},
        }


def _environment() -> str:
    """``Python 3.11, torch 2.13.0, ...`` as far as it is installed."""
    versions = [f"Python {platform.python_version()}"]
    for name in NAMED:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(versions)
