"""A backend without torch and without weights, for tests of everything above it.

It has a real memory of B x T cells, one token each, written and poisoned as a device would. The logits
of a row are a hash of all the cells that it attends to, so any mistake in scheduling changes its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from neuron_server.backend import BackendInfo, DecodeRow, Output, PrefillMode, PrefillRow
from neuron_server.backends.device_work import DeviceWork
from neuron_server.backends.slots import SlotTable
from neuron_server.config import GeneratorConfig
from neuron_server.models import read_model
from neuron_server.shape import StaticShape

Logits = npt.NDArray[np.float32]
Words = npt.NDArray[np.uint64]

#: Odd constants with well-mixed bits; any would do.
_STRIDE = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xD6E8FEB86659FD93)
_HALF = np.uint64(32)
#: Spread of the logits, wide enough that a greedy choice is never close.
_SPREAD = 16.0


class FakeBackend:
    """``Backend`` whose model is a hash. Same refusals and same poison as the CPU backend; scores prompts.

    The positions that it reports are those of the compiled graphs that it stands for.
    """

    def __init__(
        self,
        vocab_size: int,
        shape: StaticShape,
        max_prompt_tokens: int,
        *,
        prefill_mode: PrefillMode = "insert",
        poison: bool = False,
    ) -> None:
        self._info = BackendInfo(
            shape=shape,
            max_prompt_tokens=max_prompt_tokens,
            vocab_size=vocab_size,
            prefill_mode=prefill_mode,
            device="fake",
            can_score_prompt=True,
        )
        self._slots = SlotTable(self._info)
        self._cells: Words = np.zeros((shape.batch_size, shape.max_length), np.uint64)  # (B, T)
        self._columns = _mix(np.arange(1, shape.max_length + 1, dtype=np.uint64) * _STRIDE)  # (T,)
        self._tokens = np.arange(1, vocab_size + 1, dtype=np.uint64) * _STRIDE  # (V,)
        self._noise = np.random.default_rng(0).integers(2**40, 2**41, shape.max_length, np.uint64)  # (T,)
        self._poison = poison
        self._device = DeviceWork("fake")

    @classmethod
    def load(cls, config: GeneratorConfig) -> FakeBackend:
        """Only ``config.json`` of the model is read, for the vocabulary that its tokenizer needs."""
        return cls(
            read_model(config.model_path).vocab_size,
            StaticShape(config.batch_size, config.max_length),
            config.max_prompt_tokens,
            prefill_mode=config.prefill_mode,
            poison=config.poison,
        )

    @property
    def info(self) -> BackendInfo:
        """Constant after load."""
        return self._info

    def prefill(self, rows: Sequence[PrefillRow]) -> Output:
        """See ``Backend.prefill``."""
        self._device.refuse_if_dead()
        self._slots.check_prefill(rows)
        rebuild = self._info.prefill_mode == "rebuild"
        width = self._info.shape.max_length if rebuild else self._info.max_prompt_tokens
        for row in rows:
            self._cells[row.slot, : len(row.tokens)] = row.tokens
            self._spoil(row.slot, len(row.tokens), width)
        self._slots.filled(rows)
        if rebuild:
            for slot in self._slots.free:
                self._spoil(slot, 0, width)
        logits = self._logits([(row.slot, len(row.tokens)) for row in rows])
        scores = [self._score(row) if row.prompt_logprobs else None for row in rows]
        return Output(logits, scores, positions=width * len(rows))

    def decode(self, rows: Sequence[DecodeRow]) -> Output:
        """See ``Backend.decode``."""
        self._device.refuse_if_dead()
        self._slots.check_decode(rows)
        for row in rows:
            self._cells[row.slot, row.position] = row.token
        self._slots.stepped(rows)
        if rows:
            for slot in self._slots.free:
                self._spoil(slot, 0, 1)
                self._spoil(slot, rows[0].position, rows[0].position + 1)
        positions = self._info.shape.batch_size if rows else 0
        return Output(self._logits([(row.slot, row.position + 1) for row in rows]), positions=positions)

    def release(self, slots: Sequence[int]) -> None:
        """See ``Backend.release``."""
        self._device.refuse_if_dead()
        self._slots.check_release(slots)
        self._slots.freed(slots)
        for slot in slots:
            self._spoil(slot, 0, self._info.shape.max_length)

    def close(self) -> None:
        """Later calls are refused."""
        self._device.close()

    def _spoil(self, slot: int, start: int, stop: int) -> None:
        if self._poison:
            self._cells[slot, start:stop] = self._noise[start:stop]

    def _logits(self, rows: Sequence[tuple[int, int]]) -> Logits:
        """Logits (n, V) of (slot, number of attended cells)."""
        seeds = [
            _mix(((self._cells[slot, :length] + np.uint64(1)) * self._columns[:length]).sum(keepdims=True))
            for slot, length in rows
        ]
        if not seeds:
            return np.empty((0, self._info.vocab_size), np.float32)
        words = _mix(np.stack(seeds) + self._tokens)  # (n, V)
        logits: Logits = (words >> _HALF).astype(np.float32) * np.float32(_SPREAD / 2**32)
        return logits

    def _score(self, row: PrefillRow) -> Logits:
        """Natural log-probability of tokens 1 .. given those before; (length - 1,)."""
        lengths = range(1, len(row.tokens))
        logits = [self._logits([(row.slot, length)])[0].astype(np.float64) for length in lengths]
        scores = [
            z[token] - z.max() - np.log(np.exp(z - z.max()).sum())
            for z, token in zip(logits, row.tokens[1:], strict=True)
        ]
        return np.array(scores, np.float32)


def _mix(words: Words) -> Words:
    """Spread each word's bits over the whole word."""
    once: Words = (words ^ (words >> _HALF)) * _MIX
    twice: Words = (once ^ (once >> _HALF)) * _MIX
    thrice: Words = twice ^ (twice >> _HALF)
    return thrice
