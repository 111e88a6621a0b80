"""How many parameters a model has, from the shapes in its ``config.json``: one formula per family.

The formulas are those of the models in transformers (its module definitions, each counted once: a tied output
layer adds nothing); a test builds each family there and compares.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from launcher.planner.dimensions import ConfigNumbers, Dimensions


def parameter_count(config: ConfigNumbers, sizes: Dimensions) -> int | None:
    """Parameters of the model; ``None`` for a family without a formula here."""
    formula = _FORMULAS.get(sizes.model_type)
    return None if formula is None else formula(config, sizes)


def _ends(sizes: Dimensions) -> int:
    """Embedding and, where it is a tensor of its own, output layer."""
    return sizes.vocab * sizes.hidden * (1 if sizes.tied else 2)


def _attention(sizes: Dimensions) -> int:
    """Weights of the four projections of one layer."""
    return 2 * sizes.hidden * (sizes.width + sizes.kv_width)


def _norms(sizes: Dimensions) -> int:
    """Two scales a layer and one at the end."""
    return sizes.hidden * (2 * sizes.layers + 1)


def _llama(config: ConfigNumbers, sizes: Dimensions) -> int:
    layer = _attention(sizes) + 3 * sizes.hidden * sizes.intermediate
    if config.switch("attention_bias", False):
        layer += sizes.width + 2 * sizes.kv_width + sizes.hidden
    if config.switch("mlp_bias", False):
        layer += 2 * sizes.intermediate + sizes.hidden
    return _ends(sizes) + _norms(sizes) + sizes.layers * layer


def _qwen2(_config: ConfigNumbers, sizes: Dimensions) -> int:
    layer = _attention(sizes) + sizes.width + 2 * sizes.kv_width + 3 * sizes.hidden * sizes.intermediate
    return _ends(sizes) + _norms(sizes) + sizes.layers * layer


def _qwen3(config: ConfigNumbers, sizes: Dimensions) -> int:
    return _llama(config, sizes) + sizes.layers * 2 * sizes.head_dim  # the norms of queries and keys


def _no_bias(_config: ConfigNumbers, sizes: Dimensions) -> int:
    layer = _attention(sizes) + 3 * sizes.hidden * sizes.intermediate
    return _ends(sizes) + _norms(sizes) + sizes.layers * layer


def _mixtral(_config: ConfigNumbers, sizes: Dimensions) -> int:
    experts = sizes.experts * 3 * sizes.hidden * sizes.intermediate + sizes.experts * sizes.hidden
    return _ends(sizes) + _norms(sizes) + sizes.layers * (_attention(sizes) + experts)


def _qwen3_moe(config: ConfigNumbers, sizes: Dimensions) -> int:
    layer = _attention(sizes) + 2 * sizes.head_dim
    if config.switch("attention_bias", False):
        layer += sizes.width + 2 * sizes.kv_width + sizes.hidden
    width, every = config.needed("moe_intermediate_size"), config.number("decoder_sparse_step") or 1
    dense = set(config.ids("mlp_only_layers"))
    sparse = sum(i not in dense and (i + 1) % every == 0 for i in range(sizes.layers))
    experts = sparse * sizes.experts * (3 * sizes.hidden * width + sizes.hidden)
    mlps = (sizes.layers - sparse) * 3 * sizes.hidden * sizes.intermediate
    return _ends(sizes) + _norms(sizes) + sizes.layers * layer + experts + mlps


def _gpt2(config: ConfigNumbers, sizes: Dimensions) -> int:
    hidden, inner = sizes.hidden, sizes.intermediate
    layer = 4 * hidden * (hidden + 1) + (2 * hidden * inner + inner + hidden) + 4 * hidden
    positions = config.needed("n_positions", "max_position_embeddings")
    return _ends(sizes) + positions * hidden + sizes.layers * layer + 2 * hidden


def _opt(config: ConfigNumbers, sizes: Dimensions) -> int:
    hidden, inner = sizes.hidden, sizes.intermediate
    layer = 4 * hidden * hidden + 2 * hidden * inner
    if config.switch("enable_bias", True):
        layer += 5 * hidden + inner
    norm = 2 * hidden if config.switch("layer_norm_elementwise_affine", True) else 0
    layer += 2 * norm
    last = config.switch("do_layer_norm_before", True) and not config.switch(
        "_remove_final_layer_norm", False
    )
    embedded = config.number("word_embed_proj_dim") or hidden
    positions = config.needed("max_position_embeddings") + 2  # two rows are never used
    total = sizes.vocab * embedded * (1 if sizes.tied else 2) + positions * hidden
    total += 2 * embedded * hidden if embedded != hidden else 0
    return total + sizes.layers * layer + (norm if last else 0)


def _bloom(_config: ConfigNumbers, sizes: Dimensions) -> int:
    hidden = sizes.hidden
    layer = 4 * hidden * (hidden + 1) + (8 * hidden * hidden + 5 * hidden) + 4 * hidden
    return _ends(sizes) + sizes.layers * layer + 4 * hidden  # a norm after the embedding, one at the end


_FORMULAS: Mapping[str, Callable[[ConfigNumbers, Dimensions], int]] = {
    **dict.fromkeys(("llama", "granite", "smollm3"), _llama),
    **dict.fromkeys(("mistral", "phi3"), _no_bias),
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "qwen3_moe": _qwen3_moe,
    "mixtral": _mixtral,
    "gpt2": _gpt2,
    "opt": _opt,
    "bloom": _bloom,
}

#: Families that can be counted.
COUNTED: frozenset[str] = frozenset(_FORMULAS)
