"""The installed release, imported over the stand-ins of its generation."""

from __future__ import annotations

import json
from importlib import import_module, metadata
from pathlib import Path

INSTALLED = metadata.version("optimum-neuron")
MODERN = INSTALLED != "0.0.28"

LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 64, "hidden_size": 32,
    "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 64, "torch_dtype": "float32", "eos_token_id": 2, "head_dim": 8,
    "tie_word_embeddings": False,
}  # fmt: skip


def prepare() -> None:
    """Make optimum-neuron importable."""
    if MODERN:
        import_module("hosts.nxd.upstream").stand_in()
    else:
        import_module("hosts.legacy.upstream").load()


def configuration(path: Path, **changes: object) -> Path:
    """A directory with the configuration of a tiny llama."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps({**LLAMA, **changes}))
    (path / "tokenizer.json").write_text("{}")
    return path
