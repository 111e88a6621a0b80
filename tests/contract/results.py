"""What the tests of a run showed, kept as ``build/contract/SUBJECT.json`` for the matrix."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest
from contract.subject import Subject
from contract.subjects import column_of

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "build" / "contract"

#: The file of what counts for every column.
EVERY = "every-column"


class Recorder:
    """Counts passed and failed tests by subject and group; a skipped test shows nothing."""

    def __init__(self, asked: Sequence[str]) -> None:
        self.asked = tuple(asked)
        self.subjects: Sequence[Subject] = ()
        #: subject ("" for every column) -> group -> tests that passed, tests that did not
        self._seen: dict[str, dict[int, dict[str, set[str]]]] = defaultdict(
            lambda: defaultdict(lambda: {"passed": set(), "failed": set()})
        )

    def take(self, report: pytest.TestReport) -> None:
        """A failure of set-up or teardown is one of the test."""
        if report.outcome == "skipped" or (report.when != "call" and report.outcome == "passed"):
            return
        for name, value in report.user_properties:
            if name == "group":
                numbers, subject = value
                for number in numbers:
                    self._seen[subject or ""][number][report.outcome].add(report.nodeid)

    def write(self) -> list[Path]:
        """One file for each subject of which any test ran; the others' files stay as they were."""
        facts = {subject.name: subject for subject in self.subjects}
        return [self._write(name, facts.get(name)) for name in sorted(self._seen)]

    def _write(self, name: str, subject: Subject | None) -> Path:
        groups = {
            str(number): {
                "passed": len(tests["passed"] - tests["failed"]),
                "failed": sorted(tests["failed"]),
            }
            for number, tests in sorted(self._seen[name].items())
        }
        result = {"subject": name or EVERY, "groups": groups}
        if subject is not None:
            reasons = {str(number): why for number, why in sorted(subject.not_applicable.items())}
            result |= {"column": column_of(subject), "not_applicable": reasons}
        RESULTS.mkdir(parents=True, exist_ok=True)
        path = RESULTS / f"{name or EVERY}.json"
        path.write_text(json.dumps(result, indent=1) + "\n")
        return path
