from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from neuron_server.backends.attention import NAME, grouped_attention, use_grouped_attention

HEADS, KV_HEADS, DIM, KEYS = 6, 2, 8, 11


def llama(kv_heads: int = KV_HEADS) -> Any:
    config = LlamaConfig(
        vocab_size=32, hidden_size=48, intermediate_size=32, num_hidden_layers=1, num_attention_heads=HEADS,
        num_key_value_heads=kv_heads,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("queries", [1, 4])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_it_equals_the_attention_that_repeats_the_cache(queries: int, masked: bool, scaling: Any) -> None:
    torch.manual_seed(queries)
    query = torch.randn(3, HEADS, queries, DIM)
    store = torch.randn(2, 5, KV_HEADS, 2 * KEYS, DIM)
    key, value = store[:, 1:4, :, :KEYS]  # views, as the static cache gives them
    mask = None
    if masked:
        hidden = torch.rand(3, 1, queries, KEYS) < 0.5
        hidden[..., 0] = False
        mask = torch.zeros(hidden.shape).masked_fill(hidden, torch.finfo(torch.float32).min)
    module = llama().model.layers[0].self_attn
    arguments = {"dropout": 0.0, "scaling": scaling, "sliding_window": None}
    one, _ = grouped_attention(module, query, key, value, mask, **arguments)
    other, _ = sdpa_attention_forward(module, query, key, value, mask, **arguments)
    assert one.shape == (3, queries, HEADS, DIM)
    torch.testing.assert_close(one, other)


def test_models_with_grouped_heads_are_switched_and_others_left_alone() -> None:
    grouped, plain = llama(), llama(kv_heads=HEADS)
    assert use_grouped_attention(grouped)
    assert grouped.config._attn_implementation == NAME
    assert not use_grouped_attention(plain)
    assert plain.config._attn_implementation == "sdpa"
    assert not use_grouped_attention(
        GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=8, n_layer=1, n_head=2))
    )


def test_a_model_that_was_asked_for_eager_attention_keeps_it() -> None:
    model = llama()
    model.set_attn_implementation("eager")
    assert not use_grouped_attention(model)
    assert model.config._attn_implementation == "eager"


def test_prefills_keep_their_causal_mask() -> None:
    tokens = torch.arange(9)[None]
    model = llama()
    expected = model(tokens).logits
    use_grouped_attention(model)
    torch.testing.assert_close(model(tokens).logits, expected)
