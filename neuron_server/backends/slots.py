"""Which slots are live and how many tokens each holds; the refusals of the static-shape contract.

Shared by every backend, so that all of them refuse the same calls. A check never changes anything, and the
state changes only after the device work, so a refused or failed call leaves it as it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from neuron_server.backend import BackendInfo, DecodeRow, PrefillRow
from neuron_server.errors import (
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
        self._check_slots([row.slot for row in rows])
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
        self._check_slots([row.slot for row in rows])
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
