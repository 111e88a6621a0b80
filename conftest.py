"""The conformance table: which of TGI's 197 public cases the tests of this run show, and how they ended.

A test that shows a case is marked with its number, ``@pytest.mark.case(35)`` (or several numbers;
parameters may carry the mark). Where this server differs on purpose the test shows what it does instead and
the mark says why: ``@pytest.mark.case(87, deviation=REAL_STATUS)``. ``tests/conformance.py`` has the cases
and the reasons. The table is written to ``build/conformance.md`` after every run; cases whose tests were not
run say so. ``python -m pytest -m case`` runs only the tests that show one.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest
from conformance import CASES, DEVIATIONS

#: The contract of backends: the option ``--subject``, the marks ``group`` and ``only``, the matrix.
pytest.register_assert_rewrite("contract")
pytest_plugins = ("contract.plugin",)

TABLE = Path(__file__).parent / "build" / "conformance.md"

#: What may stand in the column of results.
_RESULTS = ("pass", "deviates", "FAIL", "not run")

#: Case -> (test, whether it passed, why it deviates) of everything that ran; a skipped test shows nothing.
_shown: dict[int, list[tuple[str, bool, str | None]]] = defaultdict(list)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "case(*numbers, deviation=None): shows these cases of TGI's contract")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for mark in item.iter_markers("case"):
            deviation = mark.kwargs.get("deviation")
            if set(mark.args) - set(CASES) or set(mark.kwargs) - {"deviation"}:
                raise pytest.UsageError(f"{item.nodeid}: no such case: {mark}")
            if deviation not in (None, *DEVIATIONS):
                raise pytest.UsageError(f"{item.nodeid}: not a reason of tests/conformance.py: {deviation!r}")
            item.user_properties.append(("case", (mark.args, deviation)))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.outcome == "skipped" or (report.when != "call" and report.outcome == "passed"):
        return
    for name, value in report.user_properties:
        if name == "case":
            numbers, deviation = value
            for number in numbers:
                _shown[number].append((report.nodeid, report.outcome == "passed", deviation))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _shown or terminalreporter.config.getoption("--subject"):
        return  # one column of the contract of backends is no run of the table
    counts = {word: sum(_result(n) == word for n in CASES) for word in _RESULTS}
    summary = ", ".join(f"{count} {word}" for word, count in counts.items())
    reasons = [f"- {reason}: {_listed(reason)}\n" for reason in DEVIATIONS if _listed(reason)]
    head = f"# TGI's {len(CASES)} cases: {summary}\n\n{''.join(reasons)}\n"
    rows = "".join(_row(number) for number in CASES)
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text(f"{head}| # | case | result | shown by |\n|---|---|---|---|\n{rows}")
    terminalreporter.write_line(f"TGI conformance: {summary} ({TABLE.relative_to(TABLE.parents[1])})")


def _result(number: int) -> str:
    shown = _shown.get(number, [])
    if not shown:
        return "not run"
    if not all(passed for _, passed, _ in shown):
        return "FAIL"
    return "deviates" if any(deviation for _, _, deviation in shown) else "pass"


def _listed(reason: str) -> str:
    """The cases that deviate for this reason."""
    return ", ".join(str(n) for n in CASES if any(why == reason for _, _, why in _shown.get(n, [])))


def _row(number: int) -> str:
    shown = _shown.get(number, [])
    reasons = {deviation for _, _, deviation in shown if deviation}
    result = ": ".join([_result(number), *sorted(reasons)])
    tests = sorted({nodeid.split("[")[0] for nodeid, _, _ in shown})
    names = "<br>".join(f"`{test.rpartition('/')[2]}`" for test in tests)
    return f"| {number} | {CASES[number]} | {result} | {names} |\n"
