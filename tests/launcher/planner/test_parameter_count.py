"""The formulas beside the models themselves, built by transformers without memory (on the meta device)."""

from __future__ import annotations

import json

import pytest
import torch
from planner import plans
from transformers import AutoModelForCausalLM
from transformers.modeling_utils import no_init_weights
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from launcher.planner.parameter_count import COUNTED, parameter_count

LLAMA = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
EXPERTS = {**LLAMA, "num_experts": 5, "num_local_experts": 5, "moe_intermediate_size": 24}
OPT = {
    "vocab_size": 97,
    "hidden_size": 48,
    "ffn_dim": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
GPT2 = {"vocab_size": 97, "n_embd": 48, "n_layer": 3, "n_head": 6, "n_positions": 64}

CASES = [
    ("llama", LLAMA),
    ("llama", {**LLAMA, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    ("llama", {**LLAMA, "head_dim": 16}),
    ("mistral", LLAMA),
    ("granite", LLAMA),
    ("granite", {**LLAMA, "attention_bias": True}),
    ("phi3", LLAMA),
    ("smollm3", LLAMA),
    ("qwen2", LLAMA),
    ("qwen2", {**LLAMA, "tie_word_embeddings": True}),
    ("qwen3", {**LLAMA, "head_dim": 16}),
    ("qwen3", {**LLAMA, "head_dim": 16, "attention_bias": True}),
    ("mixtral", EXPERTS),
    ("qwen3_moe", {**EXPERTS, "head_dim": 16}),
    ("qwen3_moe", {**EXPERTS, "head_dim": 16, "decoder_sparse_step": 2}),
    ("qwen3_moe", {**EXPERTS, "head_dim": 16, "mlp_only_layers": [0, 2]}),
    ("gpt2", GPT2),
    ("gpt2", {**GPT2, "n_inner": 100}),
    ("opt", {**OPT, "word_embed_proj_dim": 48}),
    ("opt", {**OPT, "word_embed_proj_dim": 24, "do_layer_norm_before": False}),
    ("opt", {**OPT, "enable_bias": False, "layer_norm_elementwise_affine": False, "word_embed_proj_dim": 48}),
    ("bloom", {"vocab_size": 97, "hidden_size": 48, "n_layer": 3, "n_head": 6}),
]


def built(model_type, values):
    """(config as saved, parameters of the model, a tied tensor once)."""
    config = CONFIG_MAPPING[model_type](**values)
    with torch.device("meta"), no_init_weights():  # opt without scales cannot be initialised
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    return config.to_dict(), sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("model_type", "values"), CASES, ids=lambda v: v if isinstance(v, str) else "")
def test_a_formula_counts_what_the_model_has(model_type, values, tmp_path):
    saved, parameters = built(model_type, values)
    (tmp_path / "config.json").write_text(json.dumps(saved))
    assert parameter_count(*plans.dimensions(tmp_path)) == parameters


def test_every_formula_is_tried():
    assert {model_type for model_type, _ in CASES} == COUNTED


@pytest.mark.parametrize("name", [plans.LLAMA_8B, plans.GPT2, plans.QWEN_7B])
def test_the_handwritten_configs_are_models_of_their_names_size(name, tmp_path):
    values = plans.config(name)
    parameters = built(values.pop("model_type"), values)[1]
    assert parameter_count(*plans.dimensions(plans.directory(tmp_path, name))) == parameters


def test_llama_70b_has_its_published_number_of_parameters(tmp_path):
    assert parameter_count(*plans.dimensions(plans.directory(tmp_path, plans.LLAMA_70B))) == 70_553_706_496


def test_a_family_without_a_formula_is_not_guessed(tmp_path):
    path = plans.directory(tmp_path, plans.LLAMA_8B, model_type="llama4_text")
    assert parameter_count(*plans.dimensions(path)) is None
