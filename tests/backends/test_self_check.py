from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from neuron_server.backends.causal_lm import CausalLM
from neuron_server.backends.self_check import check_model
from neuron_server.errors import ModelError

NEW = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
    "initializer_range": 0.2, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
OLD = {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.2}
PASSING: dict[str, dict[str, Any]] = {
    "stablelm": NEW,
    "gemma2": {**NEW, "sliding_window": 5},
    "cohere2": {**NEW, "sliding_window": 5},
    "starcoder2": {**NEW, "sliding_window": 5},
    "olmo2": NEW,
    "gptj": {**OLD, "rotary_dim": 4},
    "gpt_bigcode": OLD,
    "mpt": {
        "vocab_size": 96,
        "d_model": 32,
        "n_layers": 2,
        "n_heads": 4,
        "max_seq_len": 64,
        "expansion_ratio": 2,
    },
}
GPT_NEO = {
    "vocab_size": 96, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "window_size": 4,
    "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 64, "initializer_range": 0.2,
}  # fmt: skip


def build(family: str, **values: Any) -> CausalLM:
    torch.manual_seed(3)
    return CausalLM(AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **values)))


def refused(lm: CausalLM, **options: int) -> str:
    with pytest.raises(ModelError) as caught:
        check_model(lm, "the_family", **{"max_length": 48, **options})
    assert caught.value.rule == "unsupported_model"
    assert "the_family" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("family", PASSING)
def test_unlisted_families_that_work_pass(family: str) -> None:
    check_model(build(family, **PASSING[family]), family, max_length=48)


@pytest.mark.parametrize("max_length", [2, 3, 4, 5, 12])
def test_short_slots_can_be_checked_too(max_length: int) -> None:
    check_model(build("stablelm", **NEW), "stablelm", max_length=max_length)


def test_a_family_that_reads_its_last_column_as_the_present_is_refused() -> None:
    assert "other logits" in refused(build("gpt_neo", **GPT_NEO))


def test_a_family_without_a_cache_is_refused() -> None:
    assert "no KV cache" in refused(build("openai-gpt", **OLD))


def test_nan_is_refused() -> None:
    lm = build("stablelm", **NEW)
    with torch.no_grad():
        lm.model.get_output_embeddings().weight[5] = float("nan")
    assert "nan" in refused(lm)


def test_a_forward_that_fails_is_refused_with_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = build("stablelm", **NEW)

    def fail(*_: Any, **__: Any) -> Any:
        raise KeyError("no such thing")

    monkeypatch.setattr(lm, "_forward", fail)
    assert "no such thing" in refused(lm)
