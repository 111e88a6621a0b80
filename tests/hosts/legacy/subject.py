"""The subjects of the contract tests that run on the host half of the real optimum-neuron 0.0.28."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from contract.subject import GraphCall, Subject, Wanted
from hosts.legacy import upstream
from hosts.legacy.tiny_model import alone, tiny

from neuron_server.backend import Backend
from neuron_server.backends.neuron_legacy import NeuronLegacyBackend
from neuron_server.backends.neuron_legacy_load import missing_from
from neuron_server.config import GeneratorConfig
from neuron_server.shape import StaticShape

#: Names that the stand-ins filled in when this was last looked at, one per line.
RECORDED = Path(__file__).with_name("placeholders-0.0.28.txt")


def save_compiled(kind: str, root: Path, batch_size: int, sequence_length: int, **changes: Any) -> Path:
    """Write what optimum-neuron saves of a compiled model: config.json, checkpoint/, compiled/."""
    tiny(kind).save_pretrained(root / "checkpoint")
    (root / "compiled").mkdir()
    (root / "compiled" / "00000000000000000000.neff").write_bytes(b"NEFF")
    config = json.loads((root / "checkpoint" / "config.json").read_text())
    neuron = {
        "task": "text-generation",
        "batch_size": batch_size,
        "num_cores": upstream.CORES,
        "auto_cast_type": "fp32",
        "sequence_length": sequence_length,
        "compiler_type": "neuronx-cc",
        "compiler_version": upstream.COMPILER,
        "checkpoint_id": None,
        "checkpoint_revision": None,
    }
    (root / "config.json").write_text(json.dumps({**config, "neuron": {**neuron, **changes}}))
    return root


def generator_config(root: Path, batch_size: int, max_length: int, max_prompt_tokens: int) -> GeneratorConfig:
    return GeneratorConfig(
        model_path=str(root),
        uds_path="unused",
        batch_size=batch_size,
        max_length=max_length,
        max_prompt_tokens=max_prompt_tokens,
        backend="neuron_legacy",
    )


def make(kind: str, wanted: Wanted) -> NeuronLegacyBackend:
    """Save a compiled model and load it, all through the real ``from_pretrained``."""
    upstream.load()
    shape = wanted.shape
    with tempfile.TemporaryDirectory() as directory:
        root = save_compiled(kind, Path(directory), shape.batch_size, shape.max_length)
        return NeuronLegacyBackend.load(
            generator_config(root, shape.batch_size, shape.max_length, wanted.max_prompt_tokens)
        )


def calls(backend: Backend) -> list[GraphCall]:
    """The runs of the graphs below this backend since the last time."""
    model: Any = vars(backend)["_model"]
    drained: list[GraphCall] = model.model.graphs.drain()
    return drained


def drift() -> Sequence[str]:
    """What the adapter uses and the installed release lacks."""
    upstream.load()
    from optimum.neuron import NeuronModelForCausalLM

    return missing_from(NeuronModelForCausalLM)


def placeholders() -> tuple[set[str], set[str]]:
    """Names that loading a model of each kind asked of the absent packages, and those on record."""
    for kind in ("llama", "gpt2"):
        make(kind, Wanted(StaticShape(2, 8), 4)).close()
    return upstream.load().handed_out, set(RECORDED.read_text().split())


_NO_SAMPLING = "the legacy generation hands over logits; all sampling is the engine's"
_NOT_APPLICABLE = {
    10: "there are no prefill chunks in this generation",
    12: _NO_SAMPLING,
    13: _NO_SAMPLING,
    14: _NO_SAMPLING,
    15: _NO_SAMPLING,
    16: _NO_SAMPLING,
}

SUBJECTS = {
    "legacy-0.0.28": Subject(
        name="legacy-0.0.28",
        modes=("insert",),
        outputs=("logits",),
        make=lambda wanted: make("llama", wanted),
        alone=lambda tokens: alone("llama", tokens),
        calls=calls,
        not_applicable=_NOT_APPLICABLE,
        drift=drift,
        placeholders=placeholders,
    ),
    "legacy-static-0.0.28": Subject(
        name="legacy-static-0.0.28",
        column="legacy-0.0.28",
        shared_column=True,
        modes=("rebuild",),
        outputs=("logits",),
        make=lambda wanted: make("gpt2", wanted),
        alone=lambda tokens: alone("gpt2", tokens),
        calls=calls,
        not_applicable=_NOT_APPLICABLE,
        drift=drift,
        placeholders=placeholders,
    ),
}
