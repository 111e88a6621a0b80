"""The tiny model of the contract in transformers, and its directory as optimum-neuron would leave it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from contract.subject import Wanted
from hosts.nxd import upstream
from transformers import LlamaConfig, LlamaForCausalLM

from neuron_server.shape import StaticShape

V = 64


@cache
def reference() -> LlamaForCausalLM:
    """The weights, and the oracle."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=V, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.4, tie_word_embeddings=False,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def alone(tokens: list[int]) -> np.ndarray:
    """Logits (L, V) after each token, without any cache."""
    with torch.no_grad():
        return reference()(torch.tensor([tokens]), use_cache=False).logits[0].numpy()


@cache
def _checkpoint() -> TemporaryDirectory[str]:
    """The plain model, and beside it its weights for one core; lives as long as the process."""
    directory: TemporaryDirectory[str] = TemporaryDirectory()
    reference().save_pretrained(directory.name)
    config = neuron_config(Wanted(StaticShape(2, 8), 4))
    sharded = str(Path(directory.name) / "checkpoint")
    upstream.shard_weights(directory.name, sharded, reference().config, config)
    return directory


def write_model(directory: Path, wanted: Wanted, *, sharded: bool = True, **keys: object) -> None:
    """What an export leaves behind; ``model.pt`` is empty, for ``fake_device`` builds its graphs anew.

    ``sharded``: with the weights of each core, as an export of a local model has them; else the plain ones.
    ``keys`` are further parameters of the neuron config.
    """
    neuron_config(wanted, **keys).save_pretrained(str(directory))
    (directory / "model.pt").touch()
    left_out = "model.safetensors" if sharded else "checkpoint"
    for file in Path(_checkpoint().name).iterdir():
        if file.name != left_out:
            (directory / file.name).symlink_to(file)


def neuron_config(wanted: Wanted, **keys: object) -> Any:
    """``NxDNeuronConfig`` for these values; ``keys`` are further parameters of it."""
    return upstream.config_class()(
        **{
            "batch_size": wanted.shape.batch_size,
            "sequence_length": wanted.shape.max_length,
            "max_context_length": wanted.max_prompt_tokens,
            "continuous_batching": wanted.prefill_mode == "insert",
            "on_device_sampling": wanted.output == "tokens",
            "max_topk": min(wanted.max_top_k, V),
            "torch_dtype": "float32",
            "fused_qkv": True,
            "target": "trn1",
            **keys,
        }
    )


def written_config(wanted: Wanted) -> Mapping[str, object]:
    """The ``neuron_config.json`` that the installed release writes."""
    with TemporaryDirectory() as directory:
        write_model(Path(directory), wanted)
        config: Mapping[str, object] = json.loads((Path(directory) / "neuron_config.json").read_text())
    return config
