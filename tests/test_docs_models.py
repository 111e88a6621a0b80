"""The table of models in docs/models.md says what the code does."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from launcher.neuron_checks import COMPILED_SINCE, unsupported
from neuron_server.models import EXACT_FAMILIES

ROOT = Path(__file__).parents[1]
RELEASES = {"neuron": "0.4.5", "neuron_legacy": "0.0.28"}


def rows() -> dict[str, tuple[str, str, str]]:
    text = (ROOT / "docs" / "models.md").read_text().split("## Models table", 1)[1]
    cells = re.findall(r"^\| (\w+) \| (.+?) \| (.+?) \| (.+?) \|$", text, re.MULTILINE)
    return {name: (cpu, neuron, legacy) for name, cpu, neuron, legacy in cells if name != "others"}


def assigned(path: str, name: str) -> object:
    """A constant of a module that only imports beside optimum-neuron."""
    for node in ast.parse((ROOT / path).read_text()).body:
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and node.targets[0].id == name
        ):
            return ast.literal_eval(node.value)
    raise LookupError(name)


def test_every_family_that_we_speak_of_is_in_it():
    assert set(rows()) == set(EXACT_FAMILIES) | set(COMPILED_SINCE)


@pytest.mark.parametrize("family", rows())
def test_exact_are_the_families_that_the_tests_prove(family):
    assert (rows()[family][0] == "exact") == (family in EXACT_FAMILIES)


@pytest.mark.parametrize("family", rows())
@pytest.mark.parametrize(("column", "backend"), [(1, "neuron"), (2, "neuron_legacy")])
def test_a_dash_means_that_the_release_of_the_image_refuses_it(family, column, backend):
    refused = unsupported(family, RELEASES[backend]) is not None
    assert rows()[family][column].startswith("-") == refused


def test_host_code_was_executed_for_what_the_table_says():
    run = assigned("tests/hosts/nxd/test_architectures.py", "ARCHITECTURES")
    assert isinstance(run, dict)
    said = {family for family, row in rows().items() if row[1].startswith(("host code", "contract"))}
    assert said == set(run)
