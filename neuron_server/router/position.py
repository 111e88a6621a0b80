"""Where in a JSON text something stands. Only needed to word a refusal, so a second reading is fine."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from json.decoder import scanstring  # type: ignore[attr-defined]  # what json itself reads keys with
from typing import Any

_SPACE = re.compile(r"[ \t\n\r]*")
#: Reads past values without building numbers (an integer of a million digits is text here).
_SKIPPER = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str)


def line_and_column(text: str, position: int) -> str:
    """``line L column C`` as serde_json counts: lines from 1, columns in bytes read."""
    begin = text.rfind("\n", 0, position) + 1
    line = text.count("\n", 0, position) + 1
    return f"line {line} column {len(text[begin:position].encode(errors='replace'))}"


#: A key, the keys one field goes by, or an index.
Step = str | int | tuple[str, ...]


def order(value: Any, path: Sequence[str | int]) -> tuple[float, ...]:
    """Sorts the paths into one document as they stand in it; what is missing is noticed at the end."""
    places: list[float] = []
    for step in path:
        if isinstance(value, list) and isinstance(step, int) and step < len(value):
            places.append(step)
            value = value[step]
        elif isinstance(value, dict) and step in value:
            places.append(next(n for n, key in enumerate(value) if key == step))
            value = value[step]
        else:
            return (*places, float("inf"))
    return tuple(places)


def locate(text: str, path: Sequence[Step], *, occurrence: int = 1, behind: bool = False) -> int:
    """Where reading stood once the value at ``path`` was refused: behind a scalar, before a container.

    ``occurrence`` picks among repeated last keys; ``behind`` says that a container was read to its end. A
    path that does not exist gives the end of the innermost object that does: a missing field is seen there.
    """
    at = _skip_space(text, 0)
    for depth, step in enumerate(path):
        nth = occurrence if depth == len(path) - 1 else 1
        found = _enter(text, at, step, nth)
        if found is None:
            return _SKIPPER.raw_decode(text, at)[1]
        at = found
    return at if text[at] in "[{" and not behind else _SKIPPER.raw_decode(text, at)[1]


def _enter(text: str, at: int, step: Step, nth: int) -> int | None:
    """Start of the member ``step`` of the container that starts at ``at``."""
    container = text[at]
    if container not in "[{":
        return None
    wanted = step if isinstance(step, tuple) else (step,)
    index = 0
    at = _skip_space(text, at + 1)
    while text[at] not in "]}":
        name: str | int = index
        if container == "{":
            name, at = scanstring(text, at + 1, True)
            at = _skip_space(text, _skip_space(text, at) + 1)
        if name in wanted:
            nth -= 1
            if nth == 0:
                return at
        at = _skip_space(text, _SKIPPER.raw_decode(text, at)[1])
        if text[at] == ",":
            at = _skip_space(text, at + 1)
        index += 1
    return None


def _skip_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at
