"""A compiled grammar followed token by token: llguidance's matcher as the engine's ``Constraint``."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher

from neuron_server.errors import ValidationError
from neuron_server.text.specification import reason

#: Thread CPU that all masks and advances of one text may take: so much, and so much more per token. An
#: ordinary grammar takes 10 to 300 us per token; the largest that compile at all take up to 100 ms.
_ALLOWANCE_S, _PER_TOKEN_S = 0.5, 0.005

#: A grammar that grew is compiled anew for a text that it failed, if that takes no longer than this.
_QUICK_COMPILE_S = 0.05

#: For each byte of a bitmask what to add to its eight logits.
_ADDENDS = np.where(
    np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little") != 0, 0.0, -np.inf
).astype(np.float32)  # (256, 8)

_scratch = threading.local()


class Compiled:
    """A grammar ready to be followed, and what following it has cost so far.

    The library keeps what the lexer learns in one place for all copies of a matcher. That is what makes the
    second text cheaper than the first, but it also means that the states of all texts count together against
    the limit, and that a copy is of no use any more when another has hit it.
    """

    def __init__(
        self, compile_again: Callable[[], LLMatcher], vocab_size: int, end_id: int, *, compiled_bytes: int = 0
    ) -> None:
        """``end_id`` stands for the end of the text in the tokenizer that the grammar was compiled for."""
        start = time.thread_time()
        self.matcher = compile_again()
        self.compile_s = time.thread_time() - start
        self.compile_again = compile_again
        self.vocab_size = vocab_size
        self.end_id = end_id
        self.compiled_bytes = compiled_bytes
        #: CPU seconds in masks and advances, by all texts.
        self.spent_s = 0.0
        self.failed = False
        self.forks = 0

    @property
    def worn(self) -> bool:
        """Time for a fresh one: a text failed, or much was learnt that the next text may not need."""
        return self.failed or self.spent_s > 1.0

    @property
    def weight(self) -> int:
        """Bytes, roughly: those after compiling, and the lexer's states, made at up to 50 MB/s."""
        return self.compiled_bytes + int(50e6 * self.spent_s)

    def constraint(self, stop_ids: frozenset[int]) -> TokenConstraint:
        """At the beginning of a text that ends with one of ``stop_ids``, which is not empty."""
        self.forks += 1
        return TokenConstraint(self, self.matcher.deep_copy(), stop_ids, [])


class TokenConstraint:
    """See ``grammar.Constraint``.

    The mask is the library's bitmask, one row at a time: for 16 rows in a JSON Schema of 50 fields at a
    vocabulary of 144k, 0.24 ms one by one against 0.38 ms with its thread pool on two cores.
    """

    def __init__(
        self, compiled: Compiled, matcher: LLMatcher, stop_ids: frozenset[int], history: list[int]
    ) -> None:
        self._compiled = compiled
        self._matcher = matcher
        self._history = history
        self._stop_ids = stop_ids
        self._stops = np.array(sorted(stop_ids), np.int64)  # (s,)
        self._ended = False
        self._alone = False
        self._bits = np.zeros((compiled.vocab_size + 31) // 32 * 4, np.uint8)
        self._address = self._bits.ctypes.data
        self._end_byte, self._end_bit = divmod(compiled.end_id, 8)
        self._spent_s = 0.0

    def mask(self, logits: npt.NDArray[np.float32]) -> None:
        """Write ``-inf`` to every token of the row (V,) that may not come next."""
        stops = self._stops[self._stops < len(logits)]  # (s,)
        kept = logits[stops]  # (s,)
        if self._ended:
            logits.fill(-np.inf)
            logits[stops] = kept
            return
        self._fill()
        satisfied = bool(self._bits[self._end_byte] >> self._end_bit & 1)
        _apply(self._bits, logits[: self._compiled.vocab_size])
        logits[self._compiled.vocab_size :] = -np.inf  # rows of the model that no token has
        if self._compiled.end_id < len(logits):
            logits[self._compiled.end_id] = -np.inf
        logits[stops] = kept if satisfied else -np.inf

    def advance(self, token_id: int) -> None:
        """The token was chosen."""
        if self._ended:
            raise ValueError(f"token {token_id} comes after the end of the text")
        if token_id in self._stop_ids:
            if not self._matcher.is_accepting():
                raise ValueError(f"token {token_id} ends the text before the grammar is satisfied")
            self._ended = True
            return
        start = time.thread_time()
        known = token_id < self._compiled.vocab_size and token_id != self._compiled.end_id
        fine = known and self._matcher.validate_tokens([token_id]) == 1
        if not fine and not self._matcher.is_error():
            raise ValueError(f"token {token_id} is not allowed by the grammar")
        self._history.append(token_id)
        if not self._matcher.is_error():
            self._matcher.consume_token(token_id)
        self._spend(time.thread_time() - start)

    def fork(self) -> TokenConstraint:
        """An independent copy at the same place."""
        copy = TokenConstraint(self._compiled, self._matcher.deep_copy(), self._stop_ids, [*self._history])
        copy._ended, copy._alone, copy._spent_s = self._ended, self._alone, self._spent_s
        return copy

    def _fill(self) -> None:
        """The bits of the tokens that may come next. Raises ``ValidationError`` when they cannot be known."""
        start = time.thread_time()
        self._matcher.unsafe_compute_mask_ptr(self._address, len(self._bits))
        if self._matcher.is_error():
            self._start_afresh()
        self._spend(time.thread_time() - start)
        if self._spent_s > _ALLOWANCE_S + _PER_TOKEN_S * len(self._history):
            per_token_ms = 1e3 * self._spent_s / (len(self._history) + 1)
            raise ValidationError(f"grammar is too slow to follow: {per_token_ms:.0f} ms of work per token")

    def _start_afresh(self) -> None:
        """What other texts taught the lexer must not fail this one: follow it again with a fresh matcher."""
        compiled = self._compiled
        compiled.failed = True
        if compiled.forks > 1 and not self._alone and compiled.compile_s < _QUICK_COMPILE_S:
            self._alone = True
            self._matcher = compiled.compile_again()
            self._matcher.consume_tokens(self._history)
            self._matcher.unsafe_compute_mask_ptr(self._address, len(self._bits))
        if self._matcher.is_error():
            detail = reason(self._matcher.get_error())
            raise ValidationError(f"grammar is too complex to follow: {detail}")

    def _spend(self, seconds: float) -> None:
        self._spent_s += seconds
        self._compiled.spent_s += seconds


def _apply(bits: npt.NDArray[np.uint8], logits: npt.NDArray[np.float32]) -> None:
    """Add -inf where a bit is 0.

    By table, because that costs 31 us at 144k tokens whatever is allowed; a copy by mask 25 to 418, index
    lists 120 to 750. The scratch stays: a fresh array of this size costs five times the work in page faults.
    """
    scratch = getattr(_scratch, "addends", None)
    if scratch is None or len(scratch) != len(bits):
        scratch = _scratch.addends = np.empty((len(bits), 8), np.float32)
    _ADDENDS.take(bits, axis=0, out=scratch, mode="clip")  # without "clip" numpy buffers the output
    logits += scratch.reshape(-1)[: len(logits)]
