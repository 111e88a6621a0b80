"""Every family promised exact: greedy tokens equal ``transformers.generate``, one prompt at a time."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from neuron_server.backends.cpu import CpuBackend
from neuron_server.backends.families import VARIANTS
from neuron_server.config import GeneratorConfig
from neuron_server.models import EXACT_FAMILIES, read_model
from neuron_server.shape import StaticShape

SLOTS, LENGTH, LONGEST_PROMPT, WINDOW, VOCAB = 4, 32, 20, 7, 128
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
STRICT = {"bloom", "falcon", "gpt2", "llama", "mistral", "opt", "qwen2"}


@pytest.fixture(scope="module", params=CONFIGS, ids=lambda key: " ".join(key).replace(" ", "-"))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Any]:
    """(family, directory, the same model in transformers)"""
    family, variant = request.param
    torch.manual_seed(len(variant))
    config = AutoConfig.for_model(family, **CONFIGS[family, variant])
    path = tmp_path_factory.mktemp(family)
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    return family, path, model


@pytest.fixture(scope="module")
def requests(case: Any) -> list[tuple[list[int], int]]:
    """Random lengths; the corners (one token, the longest prompt, the last possible token) are among them."""
    rng = random.Random(7)
    sizes = [(1, 5), (1, 1), (2, LENGTH - 2), (LONGEST_PROMPT, LENGTH - LONGEST_PROMPT), (LONGEST_PROMPT, 1)]
    while len(sizes) < 16:
        prompt = rng.randint(1, LONGEST_PROMPT)
        sizes.append((prompt, rng.randint(1, min(10, LENGTH - prompt))))
    return [([rng.randrange(VOCAB) for _ in range(prompt)], new) for prompt, new in sizes]


@pytest.fixture(scope="module")
def expected(case: Any, requests: Any) -> list[list[int]]:
    _, _, model = case
    answers = []
    for prompt, new in requests:
        ids = torch.tensor([prompt])
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new, pad_token_id=0
        )
        answers.append(output[0, len(prompt) :].tolist())
    return answers


def _load(path: Path, **settings: Any) -> CpuBackend:
    return CpuBackend.load(
        GeneratorConfig(
            model_path=str(path), uds_path="", batch_size=SLOTS, max_length=LENGTH,
            max_prompt_tokens=LONGEST_PROMPT, poison=True, **settings,
        )
    )  # fmt: skip


@pytest.mark.parametrize("mode", ["insert", "rebuild"])
def test_tokens_equal_generate(case: Any, requests: Any, expected: Any, serve: Any, mode: str) -> None:
    _, path, _ = case
    assert serve(_load(path, prefill_mode=mode), requests, 1) == expected


def test_strict_tokens_equal_generate(case: Any, requests: Any, expected: Any, serve: Any) -> None:
    family, path, _ = case
    if family not in STRICT:
        pytest.skip("strict is tried on a subset")
    assert serve(_load(path, strict=True), requests, 2) == expected


def test_facts_give_the_size_of_the_cache(case: Any) -> None:
    _, path, _ = case
    facts = read_model(path)
    backend = _load(path)
    assert facts.exact
    assert facts.cache_bytes(StaticShape(SLOTS, LENGTH), 4) == backend._cache.nbytes
    assert facts.vocab_size == backend.info.vocab_size


def test_every_promised_family_and_variant_is_tried() -> None:
    assert set(VARIANTS) == set(EXACT_FAMILIES)
    assert {(family, v) for family, variants in VARIANTS.items() for v in variants} == set(CONFIGS)
