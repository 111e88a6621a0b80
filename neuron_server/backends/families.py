"""How models of transformers differ in what a static batch must tell them.

Most families take a ready 4-D mask and explicit positions. Those with ALiBi derive both the bias and the
mask from a 2-D mask, because the bias grows with the number of attended keys. Sliding windows are part of the
mask, for all layers or for the layers that ``layer_types`` names.

Every family of ``models.EXACT_FAMILIES`` is proven token by token in ``tests/backends/test_families.py``, in
the variants of ``VARIANTS``. Any other family must pass ``self_check`` at load.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from neuron_server.errors import ModelError

#: family -> the variants that the tests compare with ``transformers.generate``.
VARIANTS: Mapping[str, tuple[str, ...]] = {
    "bloom": ("alibi",),
    "falcon": ("multi-query rotary", "new decoder", "alibi", "alibi, one KV head per head"),
    "gpt2": ("plain", "scale by inverse layer index"),
    "gpt_neox": ("parallel residual", "sequential residual"),
    "granite": ("grouped queries, multipliers",),
    "llama": ("grouped queries", "llama3 rope scaling"),
    "mistral": ("no window", "window below T"),
    "mixtral": ("no window", "window below T"),
    "opt": ("norm before", "norm after with projections"),
    "phi": ("plain", "query and key norm"),
    "phi3": ("plain", "window below T"),
    "qwen2": ("plain", "window in upper layers"),
    "qwen3": ("plain", "window in upper layers"),
}

MaskForm = Literal["4d", "2d"]


@dataclass(frozen=True, slots=True)
class MaskPlan:
    """Which mask a decode step needs.

    ``form``: a ready additive mask (n, 1, 1, keys), or the 2-D one from which the model derives its own.
    ``windows``: layer type -> how many tokens its queries see, themselves included; ``None`` is all of them.
    ``by_layer_type``: the model takes one mask per layer type instead of one for all.
    """

    form: MaskForm
    windows: Mapping[str, int | None]
    by_layer_type: bool


def plan_mask(config: Any, *, takes_positions: bool) -> MaskPlan:  # Any: a transformers config
    """The plan for a model with this ``PretrainedConfig``.

    ``takes_positions``: whether its forward accepts ``position_ids``. Raises ``ModelError``
    (``unsupported_model``) for an attention pattern that is neither full nor a sliding window.
    """
    window = getattr(config, "sliding_window", None)
    layer_types = getattr(config, "layer_types", None)
    windows: dict[str, int | None] = {}
    for kind in dict.fromkeys(layer_types or ("sliding_attention" if window else "full_attention",)):
        if kind not in ("full_attention", "sliding_attention") or (
            kind == "sliding_attention" and not window
        ):
            raise ModelError(
                f"model type {config.model_type!r} has layers of type {kind!r};"
                " only full and sliding-window attention fit the static batch",
                rule="unsupported_model",
            )
        windows[kind] = window if kind == "sliding_attention" else None
    form: MaskForm = "2d" if getattr(config, "alibi", False) or not takes_positions else "4d"
    if form == "2d" and any(windows.values()):
        raise ModelError(
            f"model type {config.model_type!r} combines ALiBi with a sliding window", rule="unsupported_model"
        )
    return MaskPlan(form, windows, by_layer_type=any(windows.values()) and bool(layer_types))
