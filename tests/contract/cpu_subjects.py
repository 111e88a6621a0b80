"""The subjects that need nothing but this project: the fake backend, and the CPU's in all its ways."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import cache

import numpy as np
import torch
from contract.subject import GraphCall, Subject, Wanted
from transformers import LlamaConfig, LlamaForCausalLM

from neuron_server.backend import Backend, DecodeRow, DeviceSampling, PrefillMode
from neuron_server.backends.causal_lm import CausalLM
from neuron_server.backends.cpu import CpuBackend
from neuron_server.backends.fake import FakeBackend
from neuron_server.backends.on_device import MAX_TOP_K, OnDeviceSampling, choose
from neuron_server.shape import StaticShape

V = 64
#: The most positions that any of the tests asks for.
POSITIONS = 64

_PROPORTIONAL = "computes only what is needed, so its shapes follow the requests"
_NO_UPSTREAM = "no upstream code"
_HOST_SAMPLING = "hands over logits: sampling is the engine's"
_NO_CHUNKS = "chunked prefill exists only after optimum-neuron 0.4.5"
_NO_MODEL = "has no model whose calls could be seen"

#: What the model's forward was given, the newest last.
_CALLS: deque[GraphCall] = deque(maxlen=1000)


def _log(module: torch.nn.Module, args: tuple[object, ...], given: Mapping[str, object]) -> None:
    if given.get("past_key_values") is None:
        return  # the oracle, a forward without cache
    inputs = {
        name: (tuple(value.shape), str(value.dtype).removeprefix("torch."))
        for name, value in given.items()
        if isinstance(value, torch.Tensor)
    }
    _CALLS.append(GraphCall("decode" if inputs["input_ids"][0][1] == 1 else "prefill", inputs))


def _drain(backend: Backend) -> list[GraphCall]:
    calls = list(_CALLS)
    _CALLS.clear()
    return calls


@cache
def _lm() -> CausalLM:

    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=V, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=POSITIONS, initializer_range=0.4,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.register_forward_pre_hook(_log, with_kwargs=True)
    return CausalLM(model)


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


def _tokens(wanted: Wanted) -> Backend:
    strict = _cpu(strict=True, poison=True)(wanted)
    if wanted.output == "logits":
        return strict
    return OnDeviceSampling(strict, max_top_k=wanted.max_top_k, seed=1)


def _draw(logits: np.ndarray, rows: Sequence[DeviceSampling]) -> np.ndarray:
    return choose(logits, rows, MAX_TOP_K, np.random.default_rng(1))


_NO_UPSTREAM_CODE = {10: _NO_CHUNKS, 25: _NO_UPSTREAM, 26: _NO_UPSTREAM}
_LOGITS_ONLY = _NO_UPSTREAM_CODE | dict.fromkeys(range(12, 17), _HOST_SAMPLING)
_FAST = _LOGITS_ONLY | {17: _PROPORTIONAL}
_FAKE = _LOGITS_ONLY | {17: _NO_MODEL, 18: _NO_MODEL}
_BOTH: tuple[PrefillMode, PrefillMode] = ("insert", "rebuild")


def _fake_subject(name: str, *, poison: bool) -> Subject:
    return Subject(name, _BOTH, ("logits",), _fake(poison), _fake_alone, None, _FAKE, column="fake")


def _cpu_subject(name: str, *, strict: bool, poison: bool) -> Subject:
    make = _cpu(strict=strict, poison=poison)
    reasons = _LOGITS_ONLY if strict else _FAST
    column = "cpu-strict" if strict else "cpu-fast"
    return Subject(name, _BOTH, ("logits",), make, _alone, _drain, reasons, column=column, bitwise=strict)


SUBJECTS: Mapping[str, Subject] = {
    subject.name: subject
    for subject in (
        _fake_subject("fake", poison=False),
        _fake_subject("fake-poison", poison=True),
        _cpu_subject("cpu-fast", strict=False, poison=False),
        _cpu_subject("cpu-fast-poison", strict=False, poison=True),
        _cpu_subject("cpu-strict", strict=True, poison=True),
        _cpu_subject("cpu-strict-clean", strict=True, poison=False),
        Subject("tokens", _BOTH, ("tokens",), _tokens, _alone, _drain, _NO_UPSTREAM_CODE, draw=_draw),
    )
}
