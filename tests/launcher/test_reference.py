from __future__ import annotations

from pathlib import Path

from launcher.exit_codes import EXIT_CODES
from launcher.flags import FLAGS
from launcher.reference import render

DOCS = Path(__file__).parents[2] / "docs" / "flags.md"


def test_the_page_in_the_repository_is_what_the_tables_say():
    assert DOCS.read_text() == render(), "run: python -m launcher.reference > docs/flags.md"


def test_the_page_names_every_flag_and_every_exit_status():
    page = render()
    assert all(f"`{flag.option}`" in page for flag in FLAGS)
    assert all(f"| {entry.code} | `{rule}` |" in page for rule, entry in EXIT_CODES.items())
