from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from neuron_server.backends.families import MaskPlan, plan_mask
from neuron_server.backends.masks import decode_mask
from neuron_server.errors import ModelError

POSITIONS = torch.tensor([0, 4, 2])


def config(**values: Any) -> Any:
    return SimpleNamespace(model_type="some", **values)


def visible(mask: torch.Tensor) -> list[list[int]]:
    return [torch.nonzero(row.flatten() == 0).flatten().tolist() for row in mask]


def test_each_row_sees_itself_and_what_came_before() -> None:
    mask = decode_mask(MaskPlan("4d", {"full_attention": None}, False), POSITIONS, 6, torch.float32)
    assert isinstance(mask, torch.Tensor)
    assert mask.shape == (3, 1, 1, 6)
    assert visible(mask) == [[0], [0, 1, 2, 3, 4], [0, 1, 2]]
    assert mask.min() == torch.finfo(torch.float32).min


@pytest.mark.parametrize("window", [1, 2, 3, 100])
def test_a_window_counts_the_token_itself(window: int) -> None:
    mask = decode_mask(MaskPlan("4d", {"sliding_attention": window}, False), POSITIONS, 6, torch.bfloat16)
    assert isinstance(mask, torch.Tensor)
    assert mask.dtype == torch.bfloat16
    assert visible(mask) == [list(range(max(0, p - window + 1), p + 1)) for p in POSITIONS.tolist()]


def test_layer_types_get_a_mask_each() -> None:
    plan = MaskPlan("4d", {"full_attention": None, "sliding_attention": 2}, True)
    masks = decode_mask(plan, POSITIONS, 6, torch.float32)
    assert isinstance(masks, dict)
    assert visible(masks["full_attention"])[1] == [0, 1, 2, 3, 4]
    assert visible(masks["sliding_attention"])[1] == [3, 4]


def test_the_2d_form_is_ones_and_zeros() -> None:
    mask = decode_mask(MaskPlan("2d", {"full_attention": None}, False), POSITIONS, 6, torch.float32)
    assert isinstance(mask, torch.Tensor)
    assert mask.tolist() == [[1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0]]


@pytest.mark.parametrize(
    ("values", "takes_positions", "plan"),
    [
        ({}, True, MaskPlan("4d", {"full_attention": None}, False)),
        ({}, False, MaskPlan("2d", {"full_attention": None}, False)),
        ({"alibi": True}, True, MaskPlan("2d", {"full_attention": None}, False)),
        ({"sliding_window": 8}, True, MaskPlan("4d", {"sliding_attention": 8}, False)),
        ({"sliding_window": None}, True, MaskPlan("4d", {"full_attention": None}, False)),
        (
            {"sliding_window": 8, "layer_types": ["full_attention", "sliding_attention"]},
            True,
            MaskPlan("4d", {"full_attention": None, "sliding_attention": 8}, True),
        ),
        (
            {"sliding_window": 8, "layer_types": ["full_attention", "full_attention"]},
            True,
            MaskPlan("4d", {"full_attention": None}, False),
        ),
    ],
)
def test_the_plan_follows_the_config(values: Any, takes_positions: bool, plan: MaskPlan) -> None:
    assert plan_mask(config(**values), takes_positions=takes_positions) == plan


@pytest.mark.parametrize(
    "values",
    [
        {"layer_types": ["chunked_attention"]},
        {"layer_types": ["linear_attention", "full_attention"]},
        {"layer_types": ["sliding_attention"], "sliding_window": None},
        {"alibi": True, "sliding_window": 8},
    ],
)
def test_patterns_that_do_not_fit_are_refused(values: Any) -> None:
    with pytest.raises(ModelError) as caught:
        plan_mask(config(**values), takes_positions=True)
    assert caught.value.rule == "unsupported_model"
