"""Every case of TGI's contract is shown by a test, and what deviates says why, whatever part of them runs."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import conformance
from conformance import CASES, DEVIATIONS

ROOT = Path(__file__).parents[1]
FILES = [*(ROOT / "tests").rglob("test_*.py"), *(ROOT / "integration-tests").rglob("test_*.py")]
#: Names of the reasons.
REASONS = {name: text for name, text in vars(conformance).items() if name.isupper() and isinstance(text, str)}


def marks() -> Iterator[tuple[Path, ast.Call]]:
    """Every ``pytest.mark.case(...)``, and ``case(...)`` where a file has a short name for it."""
    for path in FILES:
        text = path.read_text()
        names = {"pytest.mark.case", *(["case"] if "case = pytest.mark.case" in text else [])}
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in names:
                yield path, node


def test_every_case_has_a_test():
    shown = {ast.literal_eval(number) for _, mark in marks() for number in mark.args}
    assert sorted(set(CASES) - shown) == []
    assert sorted(shown - set(CASES)) == []


def test_deviations_have_one_of_few_reasons_and_all_of_them_are_needed():
    used = {ast.unparse(keyword.value) for _, mark in marks() for keyword in mark.keywords}
    assert used == set(REASONS)
    assert set(REASONS.values()) == set(DEVIATIONS)
    assert len(DEVIATIONS) <= 7
    assert all(len(reason) > 30 for reason in DEVIATIONS)


def test_the_cases_are_numbered_and_named():
    assert list(CASES) == list(range(1, 198))
    assert len(set(CASES.values())) == len(CASES)
    assert not [title for title in CASES.values() if not title or "|" in title or "\n" in title]
