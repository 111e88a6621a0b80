"""The CPU backend: the static batch on any decoder-only model of transformers, through its own forward.

*Fast* computes only what is needed: a prefill at the prompt's length, a decode over the rows from the first
live slot to the last and the columns up to the longest. *Strict* pays what a compiled graph pays: always B
rows, all T columns, prefills padded to the prefill graph's width. Both give the same tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from neuron_server.backend import BackendInfo, DecodeRow, Output, PrefillMode, PrefillRow
from neuron_server.backends.causal_lm import CausalLM, load_causal_lm
from neuron_server.backends.device_work import DeviceWork
from neuron_server.backends.poison import Poison
from neuron_server.backends.self_check import check_model
from neuron_server.backends.slots import SlotTable
from neuron_server.backends.static_cache import DecodeWindow, StaticKVCache
from neuron_server.backends.threads import use_threads_for
from neuron_server.config import GeneratorConfig
from neuron_server.errors import ModelError
from neuron_server.models import check_supported, check_weights, read_model
from neuron_server.shape import StaticShape

logger = logging.getLogger(__name__)

#: Fast decode attends columns in multiples of this, so that few distinct shapes occur.
BUCKET = 64

Logits = npt.NDArray[np.float32]


class CpuBackend:
    """``Backend`` on torch's CPU kernels; see the module for *strict* and ``poison.py`` for *poison*."""

    def __init__(
        self,
        lm: CausalLM,
        shape: StaticShape,
        max_prompt_tokens: int,
        *,
        prefill_mode: PrefillMode = "insert",
        strict: bool = False,
        poison: bool = False,
    ) -> None:
        layers, vocab_size = lm.probe()
        self._lm = lm
        self._cache = StaticKVCache(layers, shape.batch_size, shape.max_length)
        self._info = BackendInfo(
            shape=shape,
            max_prompt_tokens=max_prompt_tokens,
            vocab_size=vocab_size,
            prefill_mode=prefill_mode,
            dtype=str(lm.dtype).removeprefix("torch."),
            can_score_prompt=True,
        )
        self._slots = SlotTable(self._info)
        self._strict = strict
        self._poison = Poison(self._cache) if poison else None
        # The width of the prefill graph: a rebuild must take histories of up to T - 1 tokens.
        self._graph_width = shape.max_length if prefill_mode == "rebuild" else max_prompt_tokens
        self._device = DeviceWork("cpu")

    @classmethod
    def load(cls, config: GeneratorConfig) -> CpuBackend:
        """Load the model that ``config`` names; raises ``ModelError``."""
        facts = read_model(config.model_path)
        check_supported(facts, trust_remote_code=config.trust_remote_code)
        if facts.max_positions is not None and config.max_length > facts.max_positions:
            raise ModelError(
                f"--max-length {config.max_length} exceeds the {facts.max_positions} positions of the model",
                rule="max_positions",
            )
        use_threads_for(check_weights(config.model_path).total_bytes, config.threads)
        lm = load_causal_lm(config.model_path, config.dtype, trust_remote_code=config.trust_remote_code)
        if not facts.exact or config.trust_remote_code:
            check_model(lm, facts.model_type, max_length=config.max_length)
        backend = cls(
            lm,
            StaticShape(config.batch_size, config.max_length),
            config.max_prompt_tokens,
            prefill_mode=config.prefill_mode,
            strict=config.strict,
            poison=config.poison,
        )
        logger.info(
            "%s loaded on CPU: %s, KV cache %s = %.0f MB, %s prefill%s%s",
            facts.model_type,
            backend.info.dtype,
            backend.info.shape,
            backend._cache.nbytes / 1e6,
            config.prefill_mode,
            ", strict" if config.strict else "",
            ", poison" if config.poison else "",
        )
        return backend

    @property
    def info(self) -> BackendInfo:
        """Constant after load."""
        return self._info

    def prefill(self, rows: Sequence[PrefillRow]) -> Output:
        """See ``Backend.prefill``. One row after the other, each straight into its slot's columns."""
        self._device.refuse_if_dead()
        self._slots.check_prefill(rows)
        results = self._device.run(lambda: [self._prefill_row(row) for row in rows])
        self._slots.filled(rows)
        if self._poison and self._info.prefill_mode == "rebuild":
            self._poison.slots(self._slots.free)
        logits = np.concatenate([r[0] for r in results]) if results else self._no_logits()  # (n, V)
        positions = self._graph_width * len(rows) if self._strict else sum(len(row.tokens) for row in rows)
        return Output(logits, [r[1] for r in results], positions=positions)

    def decode(self, rows: Sequence[DecodeRow]) -> Output:
        """See ``Backend.decode``."""
        self._device.refuse_if_dead()
        self._slots.check_decode(rows)
        if not rows:
            return Output(self._no_logits())
        logits = self._device.run(lambda: self._decode_rows(rows))
        self._slots.stepped(rows)
        if self._poison:
            self._poison.step(self._slots.free, rows[0].position)
        first, last = self._span(rows)
        return Output(logits, positions=last - first)

    def release(self, slots: Sequence[int]) -> None:
        """See ``Backend.release``."""
        self._device.refuse_if_dead()
        self._slots.check_release(slots)
        self._slots.freed(slots)
        if self._poison:
            self._poison.slots(slots)

    def close(self) -> None:
        """Nothing to give back but memory; later calls are refused."""
        self._device.close()

    # -- device work -----------------------------------------------------------------------------------------

    def _prefill_row(self, row: PrefillRow) -> tuple[Logits, Logits | None]:
        length = len(row.tokens)
        tokens = torch.tensor(row.tokens)  # (length,)
        if self._strict:
            tokens = torch.nn.functional.pad(tokens, (0, self._graph_width - length))  # (graph width,)
        logits = self._lm.prefill(
            self._cache, row.slot, tokens, length, every_position=row.prompt_logprobs
        )  # (1 or length, V)
        if self._poison:
            self._poison.columns(row.slot, length, self._graph_width)
        scores = _score(logits, tokens[:length]) if row.prompt_logprobs else None
        return logits[-1:].float().numpy(), scores

    def _decode_rows(self, rows: Sequence[DecodeRow]) -> Logits:
        first, last = self._span(rows)
        # Rows that nobody named repeat the first row, as a compiled graph's do; they write into free slots.
        tokens = torch.full((last - first,), rows[0].token)  # (n,)
        positions = torch.full((last - first,), rows[0].position)  # (n,)
        index = torch.tensor([row.slot - first for row in rows])
        tokens[index] = torch.tensor([row.token for row in rows])
        positions[index] = torch.tensor([row.position for row in rows])
        longest, shortest = int(positions.max()), int(positions.min())
        masked = self._strict or longest != shortest
        window = DecodeWindow(first, last, self._width(longest, masked), torch.arange(first, last), positions)
        logits = self._lm.decode(self._cache, tokens, window, masked=masked).float()  # (n, V)
        if [row.slot for row in rows] != list(range(first, last)):
            logits = logits[index]
        return logits.contiguous().numpy()

    def _span(self, rows: Sequence[DecodeRow]) -> tuple[int, int]:
        """The slots ``first .. last - 1`` that a decode of these rows computes."""
        if self._strict:
            return 0, self._info.shape.batch_size
        return min(row.slot for row in rows), max(row.slot for row in rows) + 1

    def _width(self, longest: int, masked: bool) -> int:
        """How many columns attention sees."""
        if self._strict:
            return self._info.shape.max_length
        if not masked:
            return longest + 1
        return min(self._info.shape.max_length, -(-(longest + 1) // BUCKET) * BUCKET)

    def _no_logits(self) -> Logits:
        return np.empty((0, self._info.vocab_size), np.float32)


def _score(logits: torch.Tensor, tokens: torch.Tensor) -> Logits:
    """Natural log-probability of tokens 1 .. given those before; (length - 1,)."""
    before = logits[:-1].float()  # (length - 1, V)
    chosen = before.gather(1, tokens[1:, None])[:, 0]
    return (chosen - before.logsumexp(-1)).numpy()
