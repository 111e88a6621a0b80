"""Durations as TGI's logs write them."""

from __future__ import annotations


def human(seconds: float) -> str:
    """``1.234567s``, ``12.5ms``, ``336.25µs``: the largest unit that gives at least one whole."""
    for unit, scale, digits in (("s", 1.0, 9), ("ms", 1e3, 6), ("µs", 1e6, 3)):
        if seconds * scale >= 1.0:
            return f"{seconds * scale:.{digits}f}".rstrip("0").rstrip(".") + unit
    return f"{round(seconds * 1e9)}ns"
