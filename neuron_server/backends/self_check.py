"""Whether a model that no test has proven works on the static batch, found out at load."""

from __future__ import annotations

import torch

from neuron_server.backends.causal_lm import CausalLM
from neuron_server.backends.static_cache import DecodeWindow, StaticKVCache
from neuron_server.errors import ModelError

#: Prompt lengths, unequal on purpose: a model that takes its positions from the batch fails on the shorter.
_LENGTHS = (9, 2, 5)
_STEPS = 3
#: Columns beyond the longest text, so that a model that takes its last column for the present fails too.
_SPARE = 4
#: Largest difference of logits that rounding explains, as a share of their spread.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.03}


def check_model(lm: CausalLM, model_type: str, *, max_length: int) -> None:
    """Compare a small static batch with the model's own forward without a cache.

    Raises ``ModelError`` (``unsupported_model``), which names the model type, when they differ or fail.
    """
    try:
        difference = _largest_difference(lm, max_length)
    except Exception as error:
        # An edge: unknown model code runs here, and whatever it raises means that it cannot be served.
        raise ModelError(
            f"model type {model_type!r} does not run on the static batch: {type(error).__name__}: {error}",
            rule="unsupported_model",
        ) from error
    if not difference <= _TOLERANCE[lm.dtype]:
        raise ModelError(
            f"model type {model_type!r} gives other logits on the static batch than alone"
            f" (difference {difference:.2g} of their spread), so it is not served",
            rule="unsupported_model",
        )


def _largest_difference(lm: CausalLM, max_length: int) -> float:
    layers, vocab_size = lm.probe()
    if not layers:
        raise ValueError("it keeps no KV cache that can be allocated once")
    steps = min(_STEPS, max_length - 1)
    lengths = [min(n, max_length - steps) for n in _LENGTHS]
    width = min(max_length, max(lengths) + steps + _SPARE)
    texts = [[(7 * i + 3 * row + 1) % vocab_size for i in range(n + steps)] for row, n in enumerate(lengths)]
    cache = StaticKVCache(layers, len(texts), width)
    pairs: list[tuple[torch.Tensor, torch.Tensor]] = []  # logits (V,) on the static batch, and alone
    for row, (text, n) in enumerate(zip(texts, lengths, strict=True)):
        logits = lm.prefill(cache, row, torch.tensor(text[:n]), n, every_position=False)
        pairs.append((logits[0], lm.full(text[:n])[-1]))
    for step in range(steps):
        positions = torch.tensor([n + step for n in lengths])
        tokens = torch.tensor([text[n + step] for text, n in zip(texts, lengths, strict=True)])
        window = DecodeWindow(0, len(texts), width, torch.arange(len(texts)), positions)
        logits = lm.decode(cache, tokens, window, masked=True)
        alone = (lm.full(text[: n + step + 1])[-1] for text, n in zip(texts, lengths, strict=True))
        pairs.extend(zip(logits, alone, strict=True))
    return float(torch.stack([_difference(one, other) for one, other in pairs]).max())


def _difference(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Largest absolute difference as a share of the spread, (); NaN if either holds one."""
    spread = (other.float().max() - other.float().min()).clamp_min(1e-6)
    return (one.float() - other.float()).abs().max() / spread
