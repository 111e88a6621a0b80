"""The matrix says no more than what ran."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from contract import matrix, results
from contract.groups import COLUMNS, GROUPS, INDEPENDENT
from contract.matrix import Matrix
from contract.results import Recorder


def ran(passed: int = 1, failed: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"passed": passed, "failed": list(failed)}


def column(groups: dict[str, Any], not_applicable: dict[str, str] | None = None) -> dict[str, Any]:
    return {
        "column": "any",
        "subjects": ["any"],
        "environment": "Python",
        "groups": groups,
        "not_applicable": not_applicable or {},
    }


def test_a_group_passes_only_where_a_test_of_it_ran_and_all_passed() -> None:
    some = Matrix({"tokens": column({"1": ran(), "2": ran(0), "3": ran(7, ("a::b",))})})
    assert [some.cell(group, "tokens") for group in (1, 2, 3, 4)] == ["pass", "not run", "FAIL", "not run"]
    assert {some.cell(group, "cpu-fast") for group in GROUPS} == {"not run"}


def test_a_reason_is_a_numbered_note_that_is_written_once() -> None:
    some = Matrix(
        {
            "cpu-fast": column({}, {"12": "no sampling", "13": "no sampling", "25": "no upstream"}),
            "tokens": column({"12": ran()}, {"25": "no upstream"}),
        }
    )
    cells = some.cells()
    assert (cells[12, "cpu-fast"], cells[13, "cpu-fast"], cells[12, "tokens"]) == ("[1]", "[1]", "pass")
    assert cells[25, "cpu-fast"] == cells[25, "tokens"] == "[2]"
    assert some.notes == ["no sampling", "no upstream"]
    assert "\n1. no sampling\n2. no upstream\n" in some.text()


def test_what_is_the_same_code_in_every_column_counts_there_and_fails_there() -> None:
    some = Matrix({"every-column": column({"22": ran(), "24": ran(3, ("a::b",)), "14": ran()})})
    assert {some.cell(22, name) for name in COLUMNS} == {"pass [1]"}
    assert some.notes == [matrix.SAME_CODE]
    assert {some.cell(24, name) for name in COLUMNS} == {"FAIL"}
    # Sampling is no matter of the launcher's: without a test on the backend itself nothing is shown.
    assert {some.cell(14, name) for name in COLUMNS} == {"not run"}


def test_the_columns_own_tests_and_the_common_ones_count_together() -> None:
    own = {"nxd-0.4.5": column({"20": ran()}), "nxd-0.3.0": column({"20": ran(1, ("c::d",))})}
    some = Matrix({**own, "every-column": column({"20": ran()})})
    assert [some.cell(20, name) for name in ("nxd-0.4.5", "nxd-0.3.0")] == ["pass", "FAIL"]
    assert "- FAIL: `c::d`" in some.text()


def test_the_program_fails_for_a_failure_anywhere_and_a_gap_in_the_named_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(group_1: dict[str, Any]) -> None:
        groups = {str(group): ran() for group in GROUPS if group not in {*INDEPENDENT, 1}}
        (tmp_path / "tokens.json").write_text(json.dumps(column({**groups, "1": group_1})))

    def main(*columns: str) -> int:
        return matrix.main(columns, tmp_path, tmp_path / "contract.md")

    write(ran())
    assert main("tokens") == 0
    assert main("tokens", "cpu-fast") == 1
    assert "group 1 in cpu-fast: not run" in capsys.readouterr().err
    write(ran(5, ("a::b",)))
    assert main() == 1
    assert capsys.readouterr().err == "group 1 in tokens: FAIL\n"


def test_a_skipped_test_shows_nothing_and_a_failed_teardown_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    recorder = Recorder(["tokens"])

    def report(nodeid: str, when: str, outcome: str, groups: tuple[int, ...], column: str | None) -> None:
        properties = [("group", (groups, column)), ("case", ((3,), None))]
        recorder.take(SimpleNamespace(nodeid=nodeid, when=when, outcome=outcome, user_properties=properties))

    assert not recorder.write()
    report("a", "setup", "skipped", (1,), "tokens")
    assert not recorder.write()
    for when in ("setup", "call", "teardown"):
        report("b", when, "passed", (1, 11), "tokens")
        report("c", when, "failed" if when == "teardown" else "passed", (1,), "tokens")
        report("d", when, "passed", (22,), None)
    assert recorder.write()
    read = matrix.read(tmp_path)
    assert read["tokens"]["groups"] == {"1": ran(1, ("c",)), "11": ran(1)}
    assert read["every-column"]["groups"] == {"22": ran(1)}
