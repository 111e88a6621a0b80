"""Ids to text, one token at a time, so that the pieces add up to the decoded whole.

Two ways, chosen by the tokenizer's decoder. Byte-level BPE maps every token to fixed bytes, so a table and an
incremental UTF-8 decoder are exact and cheapest. Every other decoder looks at neighbours (a leading space
that is stripped, bytes that fuse, ``##`` that joins), so a short window is decoded twice and compared.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from typing import Protocol

#: What decoders write for bytes that are not (yet) UTF-8.
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

#: A character has at most four bytes, so after four undecodable tokens the first stays invalid.
_MAX_HELD_TOKENS = 4

#: Prompt tokens that give the first new token its neighbours; more when these begin inside a character.
_CONTEXT_SIZES = (6, 10, 16, 32)

#: Tokens without any text of their own stay in the window; beyond this many it slides anyway.
_MAX_WINDOW = 64


class TextStream(Protocol):
    """One request's text. Special tokens are never pushed: their text is their literal."""

    def push(self, token_id: int) -> str:
        """The text this token adds; ``""`` while a character is incomplete."""
        ...

    def flush(self) -> str:
        """What an incomplete character at the end decodes to (replacement characters), or ``""``."""
        ...


class ByteStream:
    """Text of a byte-level vocabulary; ``token_bytes`` maps an id to its bytes."""

    __slots__ = ("_decode", "_token_bytes")

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes = token_bytes
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def push(self, token_id: int) -> str:
        return self._decode(self._token_bytes(token_id))

    def flush(self) -> str:
        return self._decode(b"", True)


class WindowStream:
    """Text of any other vocabulary; ``decode`` turns ids into text.

    The window holds the ids whose text was given last (``_known`` of them, decoding to ``_prefix``) and those
    still without text. A new token's text is what the window's decoding has beyond ``_prefix``.
    """

    __slots__ = ("_decode", "_known", "_prefix", "_window")

    def __init__(self, decode: Callable[[Sequence[int]], str], prompt: Sequence[int] = ()) -> None:
        self._decode = decode
        self._window, self._prefix = _context(decode, prompt)
        self._known = len(self._window)

    def push(self, token_id: int) -> str:
        self._window.append(token_id)
        text = self._decode(self._window)
        if text.endswith(REPLACEMENT) and len(self._window) - self._known < _MAX_HELD_TOKENS:
            return ""
        return self._take(text)

    def flush(self) -> str:
        return self._take(self._decode(self._window)) if len(self._window) > self._known else ""

    def _take(self, text: str) -> str:
        if text.startswith(self._prefix):
            new = text[len(self._prefix) :]
        else:  # the decoder changed its mind about text already given (a byte run that turned invalid)
            new = self._decode(self._window[self._known :])
        if new or len(self._window) > _MAX_WINDOW:
            del self._window[: self._known]
            text = self._decode(self._window)
        # else it has no text of its own (a leading space, say) but may matter to its neighbour: it stays
        self._known, self._prefix = len(self._window), text
        return new


def _context(decode: Callable[[Sequence[int]], str], prompt: Sequence[int]) -> tuple[list[int], str]:
    """The shortest useful end of the prompt that decodes cleanly, and its text."""
    for size in _CONTEXT_SIZES:
        ids = list(prompt[-size:])
        text = decode(ids) if ids else ""
        if REPLACEMENT not in text:
            return ids, text
        if size >= len(prompt):
            break
    return [], ""
