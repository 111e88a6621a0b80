"""Versions as numbers, however their packages spell them."""

from __future__ import annotations

import re

_LEADING = re.compile(r"\s*v?(\d{1,9}(?:\.\d{1,9})*)", re.ASCII)


def numbers(version: str | None) -> tuple[int, ...]:
    """``(2, 28, 23, 0)`` of ``2.28.23.0-dd5879008``; ``()`` of what does not begin with a number."""
    match = _LEADING.match(version or "")
    return tuple(int(part) for part in match.group(1).split(".")) if match else ()
