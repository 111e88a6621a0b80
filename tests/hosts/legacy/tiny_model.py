"""The tiny models of the legacy generation: llama, which is inserted into, and gpt2, which is rebuilt."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

_LLAMA = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.4, tie_word_embeddings=False,
)  # fmt: skip
_GPT2 = GPT2Config(
    vocab_size=64, n_embd=32, n_inner=48, n_layer=2, n_head=4, n_positions=64, initializer_range=0.4,
    tie_word_embeddings=False, bos_token_id=0, eos_token_id=0,
)  # fmt: skip


@cache
def tiny(kind: str) -> Any:
    """The model that everything is compared with, float32, on transformers' own forward."""
    torch.manual_seed(1)
    config = {"llama": _LLAMA, "gpt2": _GPT2}[kind]
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


def alone(kind: str, tokens: list[int]) -> np.ndarray:
    """Logits (L, V) after each token of one text, without any cache."""
    with torch.no_grad():
        return tiny(kind)(torch.tensor([tokens])).logits[0].numpy()
