"""What runs once before the first request: each graph, several batch sizes, and a look at what comes out."""

from __future__ import annotations

import numpy as np

from neuron_server.backend import Backend, DecodeRow, Output, PrefillRow
from neuron_server.errors import ModelError

#: Enough of a prompt to touch the prefill path; a device pays the whole prompt graph for it anyway.
_PROMPT_TOKENS = 32


def warm_up(backend: Backend) -> None:
    """One prefill and decode steps of 1, 2, 4 .. B rows; every slot is free again afterwards.

    Raises ``ModelError`` when the logits have the wrong shape or are not finite, or when a token that the
    device chose is outside the vocabulary: such a model would only make garbage. Whatever the backend raises
    passes through.
    """
    info = backend.info
    batch = info.shape.batch_size
    rebuild = info.prefill_mode == "rebuild"
    prompt = [0] * min(info.max_prompt_tokens, _PROMPT_TOKENS)
    if not rebuild and len(prompt) > 1:
        _check(backend, backend.prefill([PrefillRow(0, prompt)]), 1)
        _check(backend, backend.decode([DecodeRow(0, 0, len(prompt))]), 1)
        backend.release([0])
    for rows in _sizes(batch):
        slots = range(rows)
        if rebuild:
            _check(backend, backend.prefill([PrefillRow(slot, prompt) for slot in slots]), rows)
        position = len(prompt) if rebuild else 0
        _check(backend, backend.decode([DecodeRow(slot, 0, position) for slot in slots]), rows)
        backend.release(list(slots))


def _sizes(batch: int) -> list[int]:
    return [*(1 << power for power in range((batch - 1).bit_length())), batch]


def _check(backend: Backend, output: Output, rows: int) -> None:
    vocab_size = backend.info.vocab_size
    if backend.info.samples:
        _check_tokens(output, rows, vocab_size)
        return
    expected = (rows, vocab_size)
    if output.logits.shape != expected:
        raise ModelError(f"the model gives logits of shape {output.logits.shape}, expected {expected}")
    if not np.isfinite(output.logits.max(axis=1)).all():  # masked entries (-inf) are fine, NaN is not
        raise ModelError("the model gives logits that are not finite; are the weights complete?")


def _check_tokens(output: Output, rows: int, vocab_size: int) -> None:
    tokens = output.tokens
    if tokens is None or tokens.shape != (rows,):
        given = None if tokens is None else tokens.shape
        raise ModelError(f"the model gives tokens of shape {given}, expected {(rows,)}")
    for token in tokens.tolist():
        if not 0 <= token < vocab_size:
            raise ModelError(
                f"the model chooses token {token} of a vocabulary of {vocab_size}; are the weights complete?"
            )
