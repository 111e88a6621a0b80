"""Every dense architecture that the installed release serves gives transformers' logits through the backend.

The mixtures of experts (mixtral, qwen3_moe, llama4) are not here: their layers are in AWS's packages.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hosts.nxd import upstream
from transformers import AutoConfig, AutoModelForCausalLM

from neuron_server.backend import DecodeRow, PrefillRow
from neuron_server.backends import load_backend, neuron_load
from neuron_server.config import GeneratorConfig

V = 64
#: model type -> whether optimum-neuron fuses its projections by default.
ARCHITECTURES = {"granite": True, "llama": True, "phi3": True, "qwen2": False, "qwen3": True, "smollm3": True}
_SINCE_0_4 = ("smollm3",)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_a_prompt_an_insert_and_a_one_token_join_are_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_type: str
) -> None:
    if upstream.installed() == "0.3.0" and model_type in _SINCE_0_4:
        pytest.skip("0.3.0 does not serve it")
    upstream.stand_in()
    monkeypatch.setattr(neuron_load, "_loaded", [])
    model = _reference(model_type)
    model.save_pretrained(tmp_path)
    upstream.config_class()(
        batch_size=4,
        sequence_length=32,
        max_context_length=20,
        continuous_batching=True,
        torch_dtype="float32",
        fused_qkv=ARCHITECTURES[model_type],
        target="trn1",
    ).save_pretrained(str(tmp_path))
    (tmp_path / "model.pt").touch()
    with upstream.fake_device():
        backend = load_backend(GeneratorConfig(str(tmp_path), "", 4, 32, 20, backend="neuron"))
    texts = {2: [3, 1, 4, 1, 5], 0: [9, 2], 3: []}
    for slot in (2, 0):
        logits = backend.prefill([PrefillRow(slot, texts[slot])]).logits
        np.testing.assert_allclose(logits[0], _alone(model, texts[slot]), atol=1e-4)
    for token in (6, 5, 3):
        logits = backend.decode([DecodeRow(s, token + s, len(text)) for s, text in texts.items()]).logits
        for row, (slot, text) in zip(logits, texts.items(), strict=True):
            text.append(token + slot)
            np.testing.assert_allclose(row, _alone(model, text), atol=1e-4)


def _reference(model_type: str) -> torch.nn.Module:
    torch.manual_seed(1)
    config = AutoConfig.for_model(model_type)
    sizes = {
        "vocab_size": V, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
        "initializer_range": 0.4, "tie_word_embeddings": False, "head_dim": 8, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2, "layer_types": ["full_attention"] * 2, "sliding_window": None,
        "no_rope_layers": [1, 1],
    }  # fmt: skip
    for name, value in sizes.items():
        if hasattr(config, name) or name == "head_dim":
            setattr(config, name, value)
    return AutoModelForCausalLM.from_config(config).float().eval()


def _alone(model: torch.nn.Module, text: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([text]), use_cache=False).logits[0, -1].numpy()
