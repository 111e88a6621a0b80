"""Request bodies, refused as TGI's HTTP layer refuses them: plain text, before any field is looked at.

TGI parses with serde_json. What that accepts and what it does not is part of the contract; its wording past
the prefix is reproduced as far as it is cheap. ``json`` is used rather than a faster parser because duplicate
keys must be seen.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from neuron_server.router.position import line_and_column

NOT_JSON = "Expected request with `Content-Type: application/json`"
TOO_LARGE = "Failed to buffer the request body: length limit exceeded"
SYNTAX = "Failed to parse the request body as JSON: "
SCHEMA = "Failed to deserialize the JSON body into the target type: "

_WHITESPACE = re.compile(r"[ \t\n\r]*")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")

#: Levels of nesting, as in serde_json. What is deeper could be read, but not written again by ``orjson``.
_MAX_DEPTH = 127

#: Python's parser messages -> serde_json's: (elsewhere, at the end of the text).
_SYNTAX_TEXTS = {
    "Expecting value": ("expected value", "EOF while parsing a value"),
    "Expecting property name enclosed in double quotes": (
        "key must be a string",
        "EOF while parsing an object",
    ),
    "Expecting ':' delimiter": ("expected `:`", "EOF while parsing an object"),
    "Expecting ',' delimiter": ("expected `,` or `}`", "EOF while parsing an object"),
    "Illegal trailing comma before end of object": ("trailing comma", "EOF while parsing an object"),
    "Illegal trailing comma before end of array": ("trailing comma", "EOF while parsing a list"),
    "Invalid control character at": (
        "control character (\\u0000-\\u001F) found while parsing a string",
        "EOF while parsing a string",
    ),
    "Unterminated string starting at": ("EOF while parsing a string", "EOF while parsing a string"),
}


class BodyRefusedError(Exception):
    """The body is answered with ``status`` and this text, as ``text/plain``."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class RepeatedKeys(dict[str, Any]):
    """A JSON object with keys that stood more than once; whether that matters the schema knows."""

    repeated: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed body. ``value`` is ``Any`` because it has not met a schema yet; ``text`` is for positions."""

    value: Any
    text: str


async def read_body(headers: Mapping[str, str], chunks: AsyncIterator[bytes], limit: int) -> bytes:
    """Check type and size while reading. Raises ``BodyRefusedError`` (415, 413)."""
    if not _is_json(headers.get("content-type", "")):
        raise BodyRefusedError(415, NOT_JSON)
    declared = headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise BodyRefusedError(413, TOO_LARGE)
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) > limit:
            raise BodyRefusedError(413, TOO_LARGE)
    return bytes(body)


def parse(body: bytes) -> Document:
    """The first JSON value of ``body``; what follows it is ignored. Raises ``BodyRefusedError`` (400)."""
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        before = body[: error.start].decode()
        raise _syntax("invalid unicode code point", before, len(before)) from None
    start = _WHITESPACE.match(text)
    try:
        value, _ = _DECODER.raw_decode(text, start.end() if start else 0)
    except json.JSONDecodeError as error:
        at_end = error.pos >= len(text.rstrip())
        elsewhere, eof = _SYNTAX_TEXTS.get(error.msg, ("invalid escape", "EOF while parsing a string"))
        position = len(text) if at_end or elsewhere.startswith("EOF") else error.pos + 1
        raise _syntax(eof if at_end else elsewhere, text, position) from None
    except RecursionError:
        raise _syntax("recursion limit exceeded", text, len(text)) from None
    except _NumberError as error:
        raise _syntax(error.reason, text, text.find(error.literal) + len(error.literal)) from None
    if text.count("{") + text.count("[") > _MAX_DEPTH and _is_deeper(value, _MAX_DEPTH):
        raise _syntax("recursion limit exceeded", text, len(text))
    if _SURROGATE.search(text) and _has_lone_surrogate(value):
        raise _syntax("lone leading surrogate in hex escape", text, len(text)) from None
    return Document(value, text)


def _is_json(content_type: str) -> bool:
    kind, _, subtype = content_type.split(";")[0].strip().lower().partition("/")
    return kind == "application" and (subtype == "json" or subtype.endswith("+json"))


def _syntax(reason: str, text: str, position: int) -> BodyRefusedError:
    return BodyRefusedError(400, f"{SYNTAX}{reason} at {line_and_column(text, position)}")


class _NumberError(Exception):
    def __init__(self, reason: str, literal: str) -> None:
        self.reason, self.literal = reason, literal


def _integer(literal: str) -> int | float:
    """As serde_json: what fits 64 bits is an integer, everything longer a float, and so is ``-0``."""
    if len(literal) <= 20:
        number = int(literal)
        if -(2**63) <= number < 2**64 and literal != "-0":
            return number
    return _float(literal)


def _float(literal: str) -> float:
    number = float(literal)
    if number in (float("inf"), float("-inf")):
        raise _NumberError("number out of range", literal)
    return number


def _constant(literal: str) -> float:
    raise _NumberError("expected value", literal)  # NaN and Infinity are Python's, not JSON's


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    repeated = RepeatedKeys(found)
    seen: set[str] = set()
    repeated.repeated = frozenset(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
    return repeated


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_constant
)


def _is_deeper(value: Any, levels: int) -> bool:
    """Whether ``value`` has objects or lists inside each other on more than so many levels."""
    level = [value]
    for _ in range(levels + 1):
        level = [item for item in level if isinstance(item, dict | list)]
        if not level:
            return False
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return True


def _has_lone_surrogate(value: Any) -> bool:
    """Whether a string anywhere in a parsed value cannot be written as UTF-8."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            if any("\ud800" <= char <= "\udfff" for char in item):
                return True
        elif isinstance(item, dict):
            stack += item
            stack += item.values()
        elif isinstance(item, list):
            stack += item
    return False
