from __future__ import annotations

import ast
from pathlib import Path

import pytest

from launcher.exit_codes import EXIT_CODES, exit_code, last_line

ROOT = Path(__file__).parents[2]
#: What runs in the launcher's process, and so can end it.
SOURCES = [
    *(ROOT / "launcher").glob("*.py"),
    *(ROOT / "neuron_server" / name for name in ("models.py", "weights.py", "errors.py")),
]


def _rules(path: Path) -> set[str]:
    """Every text given as ``rule=``, in a call or as a default."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        pairs = []
        if isinstance(node, ast.Call):
            pairs = [(k.arg, k.value) for k in node.keywords]
        elif isinstance(node, ast.arguments):
            pairs = [(a.arg, d) for a, d in zip(node.kwonlyargs, node.kw_defaults, strict=True)]
        found |= {v.value for name, v in pairs if name == "rule" and isinstance(v, ast.Constant)}
    return found


def test_every_rule_that_can_be_broken_has_a_status():
    rules = {rule for path in SOURCES for rule in _rules(path)}
    assert {"batch_size", "port_in_use", "model_missing", "weights_corrupt", "argument"} <= rules
    assert rules <= set(EXIT_CODES)


def test_statuses_are_distinct_and_0_is_not_among_them():
    codes = [entry.code for entry in EXIT_CODES.values()]
    assert len(set(codes)) == len(codes)
    assert 0 not in codes
    assert max(codes) < 126  # beyond are the shell's own


def test_tgis_statuses_keep_their_meaning():
    assert exit_code("argument") == 1
    assert exit_code("usage") == 2


def test_an_unknown_rule_is_a_failure_like_tgis():
    assert exit_code("no such rule") == 1


@pytest.mark.parametrize(
    ("rule", "message", "line"),
    [
        ("argument", "`num_shard` cannot be < 1", 'Error: ArgumentValidation("`num_shard` cannot be < 1")'),
        ("argument", 'a "b" \\', 'Error: ArgumentValidation("a \\"b\\" \\\\")'),
        ("memory", "too large", "Error: too large"),
    ],
)
def test_the_last_line_is_tgis_for_its_rules(rule, message, line):
    assert last_line(rule, message) == line
