"""The subjects that need nothing but this project: the fake backend, and the CPU's in all its ways."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import numpy as np
import torch
from contract.subject import Subject, Wanted
from transformers import LlamaConfig, LlamaForCausalLM

from neuron_server.backend import Backend, DecodeRow
from neuron_server.backends.causal_lm import CausalLM
from neuron_server.backends.cpu import CpuBackend
from neuron_server.backends.fake import FakeBackend
from neuron_server.shape import StaticShape

V = 64
#: The most positions that any of the tests asks for.
POSITIONS = 64

_PROPORTIONAL = "computes only what is needed, so its shapes follow the requests"
_NO_UPSTREAM = "no upstream code"
_HOST_SAMPLING = "hands over logits: sampling is the engine's"
_NO_CHUNKS = "chunked prefill exists only after optimum-neuron 0.4.5"
_LOGITS_ONLY = dict.fromkeys(range(12, 17), _HOST_SAMPLING)
_ALWAYS = {10: _NO_CHUNKS, 25: _NO_UPSTREAM, 26: _NO_UPSTREAM}


@cache
def _lm() -> CausalLM:

    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=V, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=POSITIONS, initializer_range=0.4,
        tie_word_embeddings=False,
    )  # fmt: skip
    return CausalLM(LlamaForCausalLM(config).eval())


def _alone(tokens: list[int]) -> np.ndarray:
    return _lm().full(tokens).numpy()


def _fake_alone(tokens: list[int]) -> np.ndarray:
    """A fresh batch of one slot: what the hash says of this text when nothing is beside it."""
    single = FakeBackend(V, StaticShape(1, POSITIONS + 1), POSITIONS)
    steps = (DecodeRow(0, token, position) for position, token in enumerate(tokens))
    return np.concatenate([single.decode([step]).logits for step in steps])


def _fake(poison: bool) -> Callable[[Wanted], Backend]:
    return lambda wanted: FakeBackend(
        V, wanted.shape, wanted.max_prompt_tokens, prefill_mode=wanted.prefill_mode, poison=poison
    )


def _cpu(*, strict: bool, poison: bool) -> Callable[[Wanted], Backend]:
    def make(wanted: Wanted) -> Backend:
        return CpuBackend(
            _lm(),
            wanted.shape,
            wanted.max_prompt_tokens,
            prefill_mode=wanted.prefill_mode,
            strict=strict,
            poison=poison,
        )

    return make


def _logits_subject(name: str, make: Callable[[Wanted], Backend], column: str, **options: object) -> Subject:
    defaults = {"alone": _alone, "not_applicable": _ALWAYS | _LOGITS_ONLY}
    return Subject(name, ("insert", "rebuild"), ("logits",), make, column=column, **(defaults | options))


_FAST = _ALWAYS | _LOGITS_ONLY | {17: _PROPORTIONAL}

SUBJECTS: Mapping[str, Subject] = {
    subject.name: subject
    for subject in (
        _logits_subject("fake", _fake(poison=False), "", alone=_fake_alone),
        _logits_subject("fake-poison", _fake(poison=True), "", alone=_fake_alone),
        _logits_subject(
            "cpu-fast", _cpu(strict=False, poison=False), "cpu-fast", bitwise=False, not_applicable=_FAST
        ),
        _logits_subject(
            "cpu-fast-poison",
            _cpu(strict=False, poison=True),
            "cpu-fast",
            bitwise=False,
            not_applicable=_FAST,
        ),
        _logits_subject("cpu-strict", _cpu(strict=True, poison=True), "cpu-strict"),
        _logits_subject("cpu-strict-clean", _cpu(strict=True, poison=False), "cpu-strict"),
    )
}
