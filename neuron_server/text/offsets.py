"""Where in a text its tokens stand, in bytes of UTF-8 as TGI tells it: the tokenizer counts characters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np


class TextToken(NamedTuple):
    """``text`` is ``start`` to ``stop`` of the input, in bytes of UTF-8.

    Tokens that are bytes of one character all have the whole of it. A special token that the tokenizer added
    stands nowhere: 0, 0 and no text.
    """

    id: int
    text: str
    start: int
    stop: int


def place(text: str, tokens: Iterable[tuple[int, tuple[int, int]]]) -> Iterator[TextToken]:
    """``tokens`` are (id, characters from and to) as the tokenizer cut ``text``.

    One by one, as a body may hold two million: all at once they make the collector stop the program.
    """
    if text.isascii():
        return (TextToken(i, text[start:stop], start, stop) for i, (start, stop) in tokens)
    at = _byte_offsets(text)
    return (TextToken(i, text[start:stop], at[start], at[stop]) for i, (start, stop) in tokens)


def _byte_offsets(text: str) -> Sequence[int]:
    """Where each character begins, and where the last one ends."""
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)  # (N,)
    lengths = 1 + (codes > 0x7F) + (codes > 0x7FF) + (codes > 0xFFFF)  # (N,)
    offsets: list[int] = np.concatenate(([0], np.cumsum(lengths))).tolist()  # (N + 1,)
    return offsets
