"""Tiny random models of every family promised exact, in each variant that takes a path of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

WINDOW, VOCAB = 7, 128
NO_ENDS = {"eos_token_id": None, "bos_token_id": None, "pad_token_id": None}
#: A large spread of weights, so that no greedy choice is nearly a tie.
SPREAD = 0.4
OLD = {
    "vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64,
    "initializer_range": SPREAD, **NO_ENDS,
}  # fmt: skip
NEW = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 64, "initializer_range": SPREAD, **NO_ENDS,
}  # fmt: skip
GROUPED = {**NEW, "num_key_value_heads": 2}
EXPERTS = {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}
OPT = {
    "vocab_size": VOCAB, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "init_std": SPREAD, "word_embed_proj_dim": 32, **NO_ENDS,
}  # fmt: skip
UPPER_WINDOW = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
FALCON = {**NEW, "ffn_hidden_size": 48}

CONFIGS: dict[tuple[str, str], dict[str, Any]] = {
    ("bloom", "alibi"): {
        "vocab_size": VOCAB, "hidden_size": 32, "n_layer": 2, "n_head": 4,
        "initializer_range": SPREAD, **NO_ENDS,
    },
    ("falcon", "multi-query rotary"): {**FALCON, "multi_query": True, "new_decoder_architecture": False},
    ("falcon", "new decoder"): {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2},
    ("falcon", "alibi"): {**FALCON, "alibi": True, "multi_query": True, "new_decoder_architecture": False},
    ("falcon", "alibi, one KV head per head"): {
        **FALCON, "alibi": True, "multi_query": False, "new_decoder_architecture": False,
    },
    ("gpt2", "plain"): OLD,
    ("gpt2", "scale by inverse layer index"): {
        **OLD, "scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True,
    },
    ("gpt_neox", "parallel residual"): NEW,
    ("gpt_neox", "sequential residual"): {**NEW, "use_parallel_residual": False, "rotary_pct": 1.0},
    ("granite", "grouped queries, multipliers"): {
        **GROUPED, "embedding_multiplier": 2.0, "residual_multiplier": 0.5, "attention_multiplier": 0.5,
        "logits_scaling": 0.25,
    },
    ("llama", "grouped queries"): GROUPED,
    ("llama", "llama3 rope scaling"): {**GROUPED, "rope_scaling": LLAMA3},
    ("mistral", "no window"): {**GROUPED, "sliding_window": None},
    ("mistral", "window below T"): {**GROUPED, "sliding_window": WINDOW},
    ("mixtral", "no window"): {**EXPERTS, "sliding_window": None},
    ("mixtral", "window below T"): {**EXPERTS, "sliding_window": WINDOW},
    ("opt", "norm before"): OPT,
    ("opt", "norm after with projections"): {
        **OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 16,
    },
    ("phi", "plain"): NEW,
    ("phi", "query and key norm"): {**NEW, "qk_layernorm": True},
    ("phi3", "plain"): {**GROUPED, "sliding_window": None},
    ("phi3", "window below T"): {**GROUPED, "sliding_window": WINDOW},
    ("qwen2", "plain"): GROUPED,
    ("qwen2", "window in upper layers"): {**GROUPED, **UPPER_WINDOW},
    ("qwen3", "plain"): {**GROUPED, "head_dim": 8},
    ("qwen3", "window in upper layers"): {**GROUPED, "head_dim": 16, **UPPER_WINDOW},
}  # fmt: skip


def save_tiny(family: str, variant: str, path: Path) -> Any:
    """Save the model of ``CONFIGS[family, variant]``; return it as transformers loads it, in float32."""
    torch.manual_seed(len(variant))
    config = AutoConfig.for_model(family, **CONFIGS[family, variant])
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    return model


def generate(model: Any, prompt: list[int], new: int) -> list[int]:
    """What ``transformers.generate`` answers to one prompt, greedily."""
    ids = torch.tensor([prompt])
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new, pad_token_id=0
    )
    answer: list[int] = output[0, len(prompt) :].tolist()
    return answer
