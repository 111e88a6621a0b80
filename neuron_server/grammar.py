"""A constraint on the text: how it travels, and what the engine knows of it.

A grammar is text in the request. The generator compiles it (``text/grammar.py``); the engine sees only which
tokens may come next.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from neuron_server.errors import ValidationError

GrammarKind = Literal["json_schema", "regex"]

#: The longest grammar: already checking a schema of this size takes half a second.
MAX_GRAMMAR_CHARS = 131_072


def bounded(text: str) -> str:
    """``text``, a grammar's; raises ``ValidationError`` when it is longer than ``MAX_GRAMMAR_CHARS``."""
    if len(text) > MAX_GRAMMAR_CHARS:
        raise ValidationError(
            f"grammar is not valid: it has {len(text)} characters; at most {MAX_GRAMMAR_CHARS}"
        )
    return text


@dataclass(frozen=True, slots=True)
class Grammar:
    """``text`` is a JSON Schema (2020-12) as compact JSON, or a regular expression for the whole text."""

    kind: GrammarKind
    text: str


class Constraint(Protocol):
    """Where one generation stands in its grammar. Used by one thread at a time."""

    def mask(self, logits: npt.NDArray[np.float32]) -> None:
        """Write ``-inf`` to every token of the row (V,) that may not come next.

        What is left is never empty: where the grammar is satisfied and nothing can follow, the tokens that
        end the text are allowed, and they are allowed only where the grammar is satisfied. Raises
        ``ValidationError`` when the grammar turns out to be too much to follow; it is of no use any more.
        """
        ...

    def advance(self, token_id: int) -> None:
        """The token was chosen. Raises ``ValueError`` for one that ``mask`` does not allow.

        What else goes wrong the next ``mask`` says.
        """
        ...

    def fork(self) -> Constraint:
        """An independent copy at the same place."""
        ...


#: Compiles for a text that ends with one of ``stop_ids``. Bounded in time and memory, never blocks the event
#: loop it is awaited on; raises ``ValidationError`` for a grammar that is wrong or too much.
Compile = Callable[[Grammar, frozenset[int]], Awaitable[Constraint]]
