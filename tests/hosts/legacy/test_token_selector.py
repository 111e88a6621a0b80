"""Why the engine samples, and not optimum-neuron's token selector."""

from __future__ import annotations

import pytest
import torch
from hosts.legacy import upstream
from hosts.legacy.tiny_model import tiny
from transformers import GenerationConfig


def select(**parameters: float) -> torch.Tensor:
    upstream.load()
    from optimum.neuron.generation import TokenSelector

    config = GenerationConfig(max_length=32, eos_token_id=0, pad_token_id=0, do_sample=True, **parameters)
    ids = torch.tensor([[1, 2, 3]])
    selector = TokenSelector.create(ids, config, tiny("llama"), 32, seed=1)
    token: torch.Tensor = selector.select(ids, torch.arange(64.0)[None])
    return token


def test_it_cannot_sample_plainly() -> None:
    assert select(top_k=1, top_p=1.0).tolist() == [63]
    with pytest.raises(ValueError, match="at least top-k or top-p"):
        select(top_k=0, top_p=1.0)
