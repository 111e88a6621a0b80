"""A tool call that is being generated, taken apart while it arrives.

A generation held to the grammar of ``tools`` writes ``{"function": {"_name": "f", "a": 1}}``, cut into tokens
anywhere and with white space wherever JSON allows it. A client wants the name, and then the text of
``{"a": 1}`` as it grows.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import NamedTuple

import orjson

#: Everything up to and including the name. The grammar writes these keys first and in this order.
_HEAD = re.compile(r'\s*\{\s*"function"\s*:\s*\{\s*"_name"\s*:\s*("(?:[^"\\]|\\.)*")', re.DOTALL)


class CallDelta(NamedTuple):
    """What a token adds to a call: the ``name``, once, and a piece of the ``arguments``, maybe empty."""

    name: str | None
    arguments: str


class _At(Enum):
    HEAD = 1  # the name is not known yet
    NAME = 2  # behind it: a comma or the end comes next
    BODY = 3  # inside the arguments
    TAIL = 4  # behind them: the envelope's own brace comes next
    END = 5


class ToolStream:
    """Use: ``feed`` each token's text, in order.

    The concatenation of all ``arguments`` is the arguments' JSON object, exactly, as soon as ``complete``.
    """

    __slots__ = ("_at", "_depth", "_escaped", "_head", "_quoted", "name")

    def __init__(self) -> None:
        #: The function's name, once it is known.
        self.name: str | None = None
        self._at = _At.HEAD
        self._head = ""
        self._depth = 1  # of braces, from the arguments' own
        self._quoted = False
        self._escaped = False

    @property
    def complete(self) -> bool:
        """Whether the call has come to its end."""
        return self._at is _At.END

    def feed(self, text: str) -> CallDelta | None:
        """What ``text`` adds; ``None`` before the name is known and after the end.

        Raises ``ValueError`` for a name that is no JSON string.
        """
        if self._at is _At.END:
            return None
        if self._at is not _At.HEAD:
            return CallDelta(None, self._arguments(text))
        self._head += text
        head = _HEAD.match(self._head)
        if head is None:
            return None
        self.name = orjson.loads(head[1])
        self._at = _At.NAME
        rest, self._head = self._head[head.end() :], ""
        return CallDelta(self.name, "{" + self._arguments(rest))

    def _arguments(self, text: str) -> str:
        if self._at is _At.TAIL:
            if "}" in text:
                self._at = _At.END
            return ""
        if self._at is _At.NAME:
            text = text.lstrip()
            if not text:
                return ""
            self._at = _At.BODY
            if text[0] == ",":  # it separates the name, which is left out, from the first argument
                text = text[1:]
        return self._body(text)

    def _body(self, text: str) -> str:
        """``text`` up to the brace that ends the arguments."""
        for at, char in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif char == '"':
                self._quoted = not self._quoted
            elif self._quoted:
                self._escaped = char == "\\"
            elif char == "{":
                self._depth += 1
            elif char == "}":
                self._depth -= 1
                if self._depth == 0:
                    self._at = _At.END if "}" in text[at + 1 :] else _At.TAIL
                    return text[: at + 1]
        return text
