"""A static batch whose rows share one column: what a model without continuous batching is fed.

All rows write their next token to the same column of the KV cache, so shorter texts start further right and
the columns before their start are masked. The column counts from the longest text, and only ever grows: when
it meets the end of the cache, shorter rows still have room that they cannot reach. ``SharedColumn`` keeps the
tokens of every row, so that the batch can then be laid out afresh from the longest text that is still there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Layout:
    """All rows, left padded to the longest: ``input_ids`` and ``attention_mask`` (1 is text), int64 (B, L).

    A row that is not live has no text: its ids are 0 and so is its mask.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor


@dataclass(frozen=True)
class Step:
    """One decode: ``input_ids`` int64 (B, 1), ``cache_ids`` int32 (1,), ``start_ids`` int64 (B,).

    Equal to what optimum-neuron's ``prepare_inputs_for_decode`` makes of masks as wide as the batch is, which
    would be B x column numbers to build and to read in every step.
    """

    input_ids: torch.Tensor
    cache_ids: torch.Tensor
    start_ids: torch.Tensor


class SharedColumn:
    """The texts of a static batch of ``batch_size`` rows and ``width`` (T) columns, and their shared column.

    ``column`` is where the next token of every row goes. A text of h tokens lies in the columns
    ``column - h .. column - 1`` of its row.
    """

    def __init__(self, batch_size: int, width: int) -> None:
        self._batch_size = batch_size
        self._width = width
        self._texts: dict[int, list[int]] = {}
        self.column = 0

    @property
    def is_full(self) -> bool:
        """Whether the next step needs ``compact`` first.

        It then gains at least one column: a step is only asked for rows with room for their token, so every
        text has at most T - 1 tokens, and ``compact`` makes the longest of them the column.
        """
        return bool(self._texts) and self.column == self._width

    def rebuild(self, texts: Mapping[int, Sequence[int]]) -> Layout:
        """Forget every row and lay out ``texts``, slot -> 1 .. T - 1 tokens; at least one text."""
        self._texts = {slot: list(text) for slot, text in texts.items()}
        self.column = max(len(text) for text in self._texts.values())
        input_ids = torch.zeros(self._batch_size, self.column, dtype=torch.int64)  # (B, L)
        attention_mask = torch.zeros_like(input_ids)  # (B, L)
        for slot, text in self._texts.items():
            input_ids[slot, -len(text) :] = torch.tensor(text)
            attention_mask[slot, -len(text) :] = 1
        return Layout(input_ids, attention_mask)

    def compact(self) -> Layout:
        """Lay the same texts out again, from the longest one that is still there."""
        return self.rebuild(self._texts)

    def step(self, tokens: Mapping[int, int]) -> Step:
        """Append ``tokens`` to the texts of their slots; a slot without a text starts one in this column.

        ``tokens`` names every live slot. Not to be called while ``is_full``.
        """
        if not self._texts:
            self.column = 0
        input_ids = torch.zeros(self._batch_size, 1, dtype=torch.int64)  # (B, 1)
        start_ids = torch.zeros(self._batch_size, dtype=torch.int64)  # (B,)
        for slot, token in tokens.items():
            text = self._texts.setdefault(slot, [])
            input_ids[slot, 0] = token
            start_ids[slot] = self.column - len(text)
            text.append(token)
        cache_ids = torch.tensor([self.column], dtype=torch.int32)  # (1,)
        self.column += 1
        return Step(input_ids, cache_ids, start_ids)

    def free(self, slots: Iterable[int]) -> None:
        """Forget the texts of these slots; the column stays where it is until a rebuild."""
        for slot in slots:
            del self._texts[slot]
