"""One generation's text: each token's own text, the whole, and where a stop string ends it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from neuron_server.text.stop import StopMatcher
from neuron_server.text.tokenizer import Tokenizer


class TokenText(NamedTuple):
    """``text`` as the client sees it; ``stopped`` when a stop string completed in it (where it is cut)."""

    text: str
    special: bool
    stopped: bool


class Transcript:
    """Turns ids into token texts.

    ``generated_text`` is the concatenation of the texts of all tokens that are not special (plus, after a
    special last token, what an incomplete character decodes to). Stop strings are looked for in what the
    client sees, literals of special tokens included.
    """

    __slots__ = ("_parts", "_special_ids", "_stops", "_stream", "_tokenizer")

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stops: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._special_ids = tokenizer.special_ids
        self._stream = tokenizer.stream(prompt)
        self._stops = StopMatcher(stops) if stops else None
        self._parts: list[str] = []

    def push(self, token_id: int, *, last: bool) -> TokenText:
        """The next token; ``last`` says that no other follows, so that held bytes are shown."""
        special = token_id in self._special_ids
        text = self._tokenizer.token_text(token_id) if special else self._stream.push(token_id)
        if last and not special:
            text += self._stream.flush()
        stopped = False
        if self._stops is not None and (keep := self._stops.feed(text)) is not None:
            stopped = True
            if not special:  # a literal is shown whole; it is no part of the generated text anyway
                text = text[:keep]
        if not special:
            self._parts.append(text)
        elif last and not stopped:
            self._parts.append(self._stream.flush())
        return TokenText(text, special, stopped)

    @property
    def generated_text(self) -> str:
        """Everything pushed so far."""
        return "".join(self._parts)
