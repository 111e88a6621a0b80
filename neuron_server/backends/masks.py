"""Attention masks of a decode step over rows of unequal length."""

from __future__ import annotations

from typing import TypeAlias

import torch

from neuron_server.backends.families import MaskPlan

Mask: TypeAlias = torch.Tensor | dict[str, torch.Tensor] | None


def decode_mask(plan: MaskPlan, positions: torch.Tensor, width: int, dtype: torch.dtype) -> Mask:
    """What each row's one query sees of columns ``0 .. width - 1``: its own position and those before it.

    ``positions`` (n,). Additive masks are made once per step, so that no layer has to convert a boolean one.
    """
    columns = torch.arange(width)  # (width,)
    seen = columns <= positions[:, None]  # (n, width)
    if plan.form == "2d":
        return seen.long()
    masks: dict[str, torch.Tensor] = {}
    for kind, window in plan.windows.items():
        visible = seen if window is None else seen & (columns > positions[:, None] - window)
        additive = torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, torch.finfo(dtype).min)
        masks[kind] = additive[:, None, None, :]  # (n, 1, 1, width)
    return masks if plan.by_layer_type else next(iter(masks.values()))
