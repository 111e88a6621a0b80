"""Attention of one new token over grouped KV heads, without repeating the cache for every query head.

For a masked decode step transformers expands keys and values to one per query head, which copies the
attended cache several times over in every layer. But queries that share a KV head can stand where a sequence
of queries would: the mask of a single token holds for each of them, so the kernel reads the cache in place.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "grouped_sdpa"


def use_grouped_attention(model: Any) -> bool:  # Any: a PreTrainedModel, which is typed in part only
    """Switch a model with grouped heads from sdpa to this; whether it was."""
    config = model.config.get_text_config()
    heads, kv_heads = (getattr(config, f"num_{kind}_heads", None) for kind in ("attention", "key_value"))
    grouped = heads is not None and kv_heads is not None and kv_heads < heads
    if not (grouped and model._supports_attention_backend and config._attn_implementation == "sdpa"):
        return False
    ALL_ATTENTION_FUNCTIONS.register(NAME, grouped_attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
    return True


def grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # (n, heads, q, head_dim)
    key: torch.Tensor,  # (n, kv_heads, keys, head_dim)
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # (n, 1, q, keys)
    scaling: float | None = None,
    **kwargs: Any,  # Any: whatever else the model's attention passes on
) -> tuple[torch.Tensor, None]:
    """The same as transformers' sdpa attention; (n, q, heads, head_dim)."""
    rows, heads, queries, head_dim = query.shape
    kv_heads = key.shape[1]
    if queries != 1 or kv_heads == heads:
        whole: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return whole
    group = heads // kv_heads
    mask = None if attention_mask is None else attention_mask.expand(-1, -1, group, -1)
    output = torch.nn.functional.scaled_dot_product_attention(
        query.reshape(rows, kv_heads, group, head_dim), key, value, attn_mask=mask, scale=scaling
    )  # (n, kv_heads, group, head_dim)
    return output.reshape(rows, 1, heads, value.shape[3]), None
