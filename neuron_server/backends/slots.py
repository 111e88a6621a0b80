"""Which slots are live and how many tokens each holds; the refusals of the static-shape contract.

Shared by every backend, so that all of them refuse the same calls. A check never changes anything, and the
state changes only after the device work, so a refused or failed call leaves it as it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral, Real

import numpy as np

from neuron_server.backend import GREEDY, BackendInfo, DecodeRow, DeviceSampling, PrefillRow
from neuron_server.errors import (
    BadSamplingError,
    BatchTooLargeError,
    EmptyPromptError,
    LiveSlotOmittedError,
    OneTokenPromptError,
    PositionMismatchError,
    PositionOverflowError,
    PromptTooLongError,
    SlotBusyError,
    SlotDuplicateError,
    SlotNotLiveError,
    SlotOutOfRangeError,
    TokenOutOfRangeError,
)

#: A device reads the sampling parameters as float32. What is smaller than its smallest normal number may
#: become 0 there, and what is larger than its largest infinity.
_SMALLEST, _LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


class SlotTable:
    """The live set of one static batch: slot -> number of tokens it holds."""

    def __init__(self, info: BackendInfo) -> None:
        self._info = info
        self._held: dict[int, int] = {}

    @property
    def live(self) -> frozenset[int]:
        """The slots that are live."""
        return frozenset(self._held)

    @property
    def free(self) -> list[int]:
        """The slots that are not, ascending."""
        return [slot for slot in range(self._info.shape.batch_size) if slot not in self._held]

    # -- checks ----------------------------------------------------------------------------------------------

    def check_prefill(self, rows: Sequence[PrefillRow]) -> None:
        """Raise what is wrong with these rows, a subclass of ``BackendError``.

        In *rebuild* mode a live slot must be there, and with as many tokens as it holds: a pending token that
        was forgotten, or counted already, is caught here.
        """
        self._check_rows(rows)
        rebuild = self._info.prefill_mode == "rebuild"
        longest = self._info.shape.max_length - 1 if rebuild else self._info.max_prompt_tokens
        for row in rows:
            length = len(row.tokens)
            if length == 0:
                raise EmptyPromptError(f"slot {row.slot}: the prompt has no tokens")
            if length > longest:
                raise PromptTooLongError(f"slot {row.slot}: {length} tokens, the prefill takes {longest}")
            if length == 1 and not rebuild:
                raise OneTokenPromptError(f"slot {row.slot}: one token enters by decode at position 0")
            if row.slot in self._held:
                self._check_live_row(row, rebuild)
            self._check_tokens(row.slot, row.tokens)
        if rebuild:
            self._check_complete(row.slot for row in rows)

    def _check_live_row(self, row: PrefillRow, rebuild: bool) -> None:
        if not rebuild:
            raise SlotBusyError(f"slot {row.slot} is live")
        held = self._held[row.slot]
        if len(row.tokens) != held:
            raise PositionMismatchError(
                f"slot {row.slot} holds {held} tokens, its history has {len(row.tokens)}"
            )

    def check_decode(self, rows: Sequence[DecodeRow]) -> None:
        """Raise what is wrong with these rows, a subclass of ``BackendError``."""
        self._check_rows(rows)
        for row in rows:
            if row.position >= self._info.shape.max_length:
                raise PositionOverflowError(
                    f"slot {row.slot}: position {row.position}, but T is {self._info.shape.max_length}"
                )
            held = self._held.get(row.slot)
            if held is None and row.position != 0:
                raise SlotNotLiveError(f"slot {row.slot} is free, so only position 0 may enter it")
            if row.position != (held or 0):
                raise PositionMismatchError(
                    f"slot {row.slot} holds {held or 0} tokens, but position {row.position} was given"
                )
            self._check_tokens(row.slot, (row.token,))
        self._check_complete(row.slot for row in rows)

    def check_release(self, slots: Sequence[int]) -> None:
        """Raise what is wrong with these slots, a subclass of ``BackendError``."""
        self._check_slots(slots)
        for slot in slots:
            if slot not in self._held:
                raise SlotNotLiveError(f"slot {slot} is free already")

    def _check_rows(self, rows: Sequence[PrefillRow] | Sequence[DecodeRow]) -> None:
        size = self._info.shape.batch_size
        if len(rows) > size:
            raise BatchTooLargeError(f"{len(rows)} rows were given, but the batch has {size} slots")
        self._check_slots([row.slot for row in rows])
        if self._info.samples:
            check_sampling(rows, self._info.max_top_k)

    def _check_slots(self, slots: Sequence[int]) -> None:
        size = self._info.shape.batch_size
        for slot in slots:
            if not 0 <= slot < size:
                raise SlotOutOfRangeError(f"slot {slot}: the batch has slots 0 to {size - 1}")
        if len(set(slots)) < len(slots):
            twice = next(slot for slot in slots if list(slots).count(slot) > 1)
            raise SlotDuplicateError(f"slot {twice} was given more than once")

    def _check_complete(self, slots: Iterable[int]) -> None:
        omitted = sorted(self.live.difference(slots))
        if omitted:
            raise LiveSlotOmittedError(f"live slots {omitted} were left out, which corrupts them on a device")

    def _check_tokens(self, slot: int, tokens: Sequence[int]) -> None:
        size = self._info.vocab_size
        if min(tokens) < 0 or max(tokens) >= size:
            wrong = next(token for token in tokens if not 0 <= token < size)
            raise TokenOutOfRangeError(f"slot {slot}: token {wrong}, the vocabulary has 0 to {size - 1}")

    # -- changes ---------------------------------------------------------------------------------------------

    def filled(self, rows: Sequence[PrefillRow]) -> None:
        """After a prefill."""
        if self._info.prefill_mode == "rebuild":
            self._held.clear()
        self._held.update((row.slot, len(row.tokens)) for row in rows)

    def stepped(self, rows: Sequence[DecodeRow]) -> None:
        """After a decode."""
        self._held.update((row.slot, row.position + 1) for row in rows)

    def freed(self, slots: Sequence[int]) -> None:
        """After a release."""
        for slot in slots:
            del self._held[slot]


def check_sampling(rows: Sequence[PrefillRow] | Sequence[DecodeRow], max_top_k: int) -> None:
    """Raise ``BadSamplingError`` for what optimum-neuron refuses, and for ``top_k`` -1.

    That one it takes, and then draws uniformly.
    """
    for row in rows:
        if row.sampling is not GREEDY:
            _check_sampling(row.slot, row.sampling, max_top_k)


def _check_sampling(slot: int, sampling: DeviceSampling, most: int) -> None:
    top_k, top_p, temperature = sampling.top_k, sampling.top_p, sampling.temperature
    if isinstance(top_k, bool) or not isinstance(top_k, Integral) or not 1 <= top_k <= most:
        raise BadSamplingError(f"slot {slot}: top_k is {top_k!r}; it must be an integer from 1 to {most}")
    for name, value, largest in (("top_p", top_p, 1.0), ("temperature", temperature, _LARGEST)):
        if not isinstance(value, Real) or not _SMALLEST <= value <= largest:  # nor is NaN
            bound = "above 0 and at most 1" if largest == 1.0 else "above 0 and finite"
            raise BadSamplingError(f"slot {slot}: {name} is {value!r}; it must be {bound}, also as a float32")
