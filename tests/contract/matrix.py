"""The contract matrix, 26 groups x 6 columns, from what the runs left in ``build/contract``.

Every run of the contract tests writes it to ``build/contract.md``. As a program,
``python tests/contract/matrix.py COLUMN ...`` prints it too, and its status is 1 where a group failed, or did
not run in one of the columns named.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # the program's directory is this one

from contract.groups import COLUMNS, GROUPS, INDEPENDENT
from contract.results import EVERY, RESULTS, ROOT

TABLE = ROOT / "build" / "contract.md"

SAME_CODE = "the same code in every column: run once, in the project's own environment"

ABOUT = """\
`pass`: at least one test of the group ran, and all of them passed. A number: see the notes. `cpu-fast`,
`cpu-strict` and `tokens` are this project's CPU backend; the others are optimum-neuron's own host code (for
nxd also its graph source), of the release named, executed on the CPU over stand-ins for AWS's packages.
None of it ran on a Neuron device: see docs/verification.md.
"""

Results = Mapping[str, Mapping[str, Any]]  # Any: JSON


@dataclass
class Matrix:
    """The cells, and the notes that some of them are numbered by."""

    results: Results
    notes: list[str] = field(default_factory=list)

    def cell(self, group: int, column: str) -> str:
        """``pass``, ``FAIL``, ``not run``, a note's number, or ``pass`` with one."""
        own, every = self.results.get(column, {}), self.results.get(EVERY, {})
        if reason := own.get("not_applicable", {}).get(str(group)):
            return self._note(reason)
        shown = [part["groups"][str(group)] for part in (own, every) if str(group) in part.get("groups", {})]
        if any(part["failed"] for part in shown):
            return "FAIL"
        if own.get("groups", {}).get(str(group), {}).get("passed"):
            return "pass"
        if group in INDEPENDENT and any(part["passed"] for part in shown):
            return f"pass {self._note(SAME_CODE)}"
        return "not run"

    def _note(self, reason: str) -> str:
        if reason not in self.notes:
            self.notes.append(reason)
        return f"[{self.notes.index(reason) + 1}]"

    def cells(self) -> dict[tuple[int, str], str]:
        """(group, column) -> cell, in the order of the table."""
        return {(group, column): self.cell(group, column) for group in GROUPS for column in COLUMNS}

    def summary(self) -> str:
        words = Counter(word(cell) for cell in self.cells().values())
        return ", ".join(f"{words[w]} {w}" for w in ("pass", "not applicable", "FAIL", "not run"))

    def text(self) -> str:
        """The whole page, as markdown."""
        cells = self.cells()
        head = f"| # | group | {' | '.join(COLUMNS)} |\n|{'---|' * (2 + len(COLUMNS))}\n"
        rows = "".join(
            f"| {group} | {fact} | {' | '.join(cells[group, column] for column in COLUMNS)} |\n"
            for group, fact in GROUPS.items()
        )
        notes = "".join(f"{number}. {note}\n" for number, note in enumerate(self.notes, 1))
        title = f"# The contract of backends: {self.summary()}\n\n{ABOUT}\n"
        return f"{title}{head}{rows}\n{notes}\n{self._columns()}{self._failures()}"

    def _columns(self) -> str:
        rows = ""
        for column in COLUMNS:
            result = self.results.get(column)
            if result is None:
                rows += f"| {column} | not run | | |\n"
                continue
            passed = sum(group["passed"] for group in result["groups"].values())
            rows += f"| {column} | {', '.join(result['subjects'])} | {passed} | {result['environment']} |\n"
        return f"| column | subjects | passed, by group | environment |\n|---|---|---|---|\n{rows}"

    def _failures(self) -> str:
        failed = {
            test
            for result in self.results.values()
            for group in result["groups"].values()
            for test in group["failed"]
        }
        return "\n" + "".join(f"- FAIL: `{test}`\n" for test in sorted(failed)) if failed else ""


def word(cell: str) -> str:
    """What a cell says, without its note."""
    return "not applicable" if cell.startswith("[") else cell.split(" [")[0]


def read(directory: Path = RESULTS) -> Results:
    """What the runs left there, by column."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(directory.glob("*.json"))}


def write(directory: Path = RESULTS, table: Path = TABLE) -> Matrix:
    """Write the page; returns what it says."""
    matrix = Matrix(read(directory))
    table.write_text(matrix.text())
    return matrix


def main(columns: Sequence[str], directory: Path = RESULTS, table: Path = TABLE) -> int:
    """Print the page; the status is 1 for a failure anywhere, or a gap in one of ``columns``."""
    matrix = write(directory, table)
    sys.stdout.write(matrix.text())
    wrong = [
        f"group {group} in {column}: {cell}"
        for (group, column), cell in matrix.cells().items()
        if cell == "FAIL" or (cell == "not run" and column in columns and group not in INDEPENDENT)
    ]
    sys.stderr.writelines(f"{line}\n" for line in wrong)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
