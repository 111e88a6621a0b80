"""The backend of the transformers-neuronx generation, over a double of upstream's class and its graphs."""

from __future__ import annotations

import json
import random
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backends.legacy_model import LegacyModelDouble
from contract.checked_batch import Batch
from hosts.legacy.tiny_model import tiny

from launcher.exit_codes import EXIT_CODES
from neuron_server.backend import DecodeRow, PrefillRow
from neuron_server.backends.neuron_legacy import NeuronLegacyBackend
from neuron_server.backends.neuron_legacy_load import missing_from
from neuron_server.config import GeneratorConfig
from neuron_server.errors import BackendError, ConfigError, DeviceFailedError, ModelError, OneTokenPromptError
from neuron_server.shape import StaticShape

B, T, C, V = 4, 32, 20, 64
KINDS = {"insert": "llama", "rebuild": "gpt2"}


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {mode: tiny(kind) for mode, kind in KINDS.items()}


def backend_on(model: Any, *, length: int = T) -> NeuronLegacyBackend:
    return NeuronLegacyBackend(model, StaticShape(B, length), C, vocab_size=V)


@pytest.fixture(params=KINDS)
def batch(request: pytest.FixtureRequest, models: dict[str, Any]) -> Iterator[Batch]:
    lm = models[request.param]
    with torch.no_grad():
        batch = Batch(
            backend_on(LegacyModelDouble(lm, B, T)), lambda ids: lm(torch.tensor([ids])).logits[0].numpy()
        )
    yield batch
    with torch.no_grad():
        for slot in list(batch.texts):
            batch.check(slot)


# -- correctness ---------------------------------------------------------------------------------------------


def test_a_random_schedule_equals_every_text_alone(batch: Batch) -> None:
    rng = random.Random(6)
    rebuild = batch.backend.info.prefill_mode == "rebuild"
    for _ in range(200):
        with torch.no_grad():  # the oracle; the backend turns gradients off itself
            batch.free(*[s for s, text in batch.texts.items() if len(text) == T or rng.random() < 0.05])
        free = [s for s in range(B) if s not in batch.texts]
        if free and rng.random() < 0.25:
            batch.add(*((s, rng.randint(1 if rebuild else 2, C)) for s in free[: rng.randint(1, B)]))
        starting = [s for s in range(B) if s not in batch.texts and rng.random() < 0.1]
        if batch.texts or starting:
            batch.step(*starting)


def test_what_the_model_is_says_how_it_is_prefilled(models: dict[str, Any]) -> None:
    for mode, lm in models.items():
        info = backend_on(LegacyModelDouble(lm, B, T)).info
        assert (info.prefill_mode, info.output, info.can_score_prompt) == (mode, "logits", False)
        assert info.device == "neuron"


def test_prompts_are_inserted_in_one_call_and_steps_carry_only_the_named_slots(
    models: dict[str, Any],
) -> None:
    model = LegacyModelDouble(models["insert"], B, T)
    backend = backend_on(model)
    filled = backend.prefill([PrefillRow(2, [5, 6, 7]), PrefillRow(0, [11, 12, 13, 14, 15])])
    [inputs] = model.seen
    assert {name: t.tolist() for name, t in inputs.items() if t is not None} == {
        "input_ids": [[5, 6, 7, 0, 0], [11, 12, 13, 14, 15]],
        "cache_ids": [[0, 1, 2, 0, 0], [0, 1, 2, 3, 4]],
        "start_ids": [2, 0],
    }
    assert filled.positions == 2 * T
    stepped = backend.decode([DecodeRow(0, 9, 5), DecodeRow(3, 1, 0), DecodeRow(2, 8, 3)])
    assert {name: t.tolist() for name, t in model.seen[-1].items() if t is not None} == {
        "input_ids": [[9], [1], [8]],
        "cache_ids": [[5], [0], [3]],
        "start_ids": [0, 3, 2],
    }
    assert stepped.positions == B
    assert filled.logits.shape == (2, V)
    assert stepped.logits.shape == (3, V)


def test_a_static_batch_that_meets_the_end_of_the_cache_goes_on_with_the_rows_that_have_room(
    models: dict[str, Any],
) -> None:
    model = LegacyModelDouble(models["rebuild"], B, 8)
    backend = backend_on(model, length=8)
    backend.prefill([PrefillRow(1, [1, 2, 3, 4, 5, 6]), PrefillRow(3, [7, 8])])
    backend.decode([DecodeRow(1, 1, 6), DecodeRow(3, 9, 2)])
    backend.decode([DecodeRow(1, 2, 7), DecodeRow(3, 10, 3)])
    with pytest.raises(BackendError):  # the longest is full itself, so it must leave
        backend.decode([DecodeRow(1, 2, 8), DecodeRow(3, 10, 4)])
    backend.release([1])
    calls = len(model.seen)
    output = backend.decode([DecodeRow(0, 20, 0), DecodeRow(3, 11, 4)])
    rebuild, step = model.seen[calls:]
    assert rebuild["input_ids"] is not None
    assert rebuild["input_ids"].tolist() == [[0] * 4, [0] * 4, [0] * 4, [7, 8, 9, 10]]
    assert step["cache_ids"] is not None
    assert step["cache_ids"].tolist() == [4]
    assert output.positions == 4 * B + B
    with torch.no_grad():
        alone = [
            models["rebuild"](torch.tensor([t])).logits[0, -1].numpy() for t in ([20], [7, 8, 9, 10, 11])
        ]
    np.testing.assert_allclose(output.logits, alone, atol=2e-4)


def test_a_rebuild_takes_a_history_of_all_but_one_token(models: dict[str, Any]) -> None:
    backend = backend_on(LegacyModelDouble(models["rebuild"], B, T))
    text = [i % V for i in range(T - 1)]
    backend.prefill([PrefillRow(0, text)])
    backend.prefill([PrefillRow(0, text), PrefillRow(1, [3])])
    logits = backend.decode([DecodeRow(0, 1, T - 1), DecodeRow(1, 2, 1)]).logits
    with torch.no_grad():
        alone = [models["rebuild"](torch.tensor([t])).logits[0, -1].numpy() for t in ([*text, 1], [3, 2])]
    np.testing.assert_allclose(logits, alone, atol=2e-4)


# -- refusals and failures -----------------------------------------------------------------------------------


def test_a_refused_call_reaches_no_graph(models: dict[str, Any]) -> None:
    model = LegacyModelDouble(models["insert"], B, T)
    backend = backend_on(model)
    with pytest.raises(OneTokenPromptError):
        backend.prefill([PrefillRow(0, [1])])
    with pytest.raises(BackendError):
        backend.decode([DecodeRow(0, 1, 4)])
    assert backend.decode([]).logits.shape == backend.prefill([]).logits.shape == (0, V)
    assert model.seen == []


@pytest.mark.parametrize("mode", KINDS)
@pytest.mark.parametrize(
    "fault",
    [
        RuntimeError("nrt_execute status=1005"),
        torch.zeros(B, 1, V + 1),
        torch.zeros(1, V),
        torch.zeros(B, 2, V),
    ],
    ids=["the runtime fails", "a wider vocabulary", "two dimensions", "two positions"],
)
def test_after_a_failure_the_backend_is_dead(models: dict[str, Any], mode: str, fault: Any) -> None:
    model = LegacyModelDouble(models[mode], B, T)
    backend = backend_on(model)
    backend.prefill([PrefillRow(0, [1, 2, 3])])

    def fail(**inputs: Any) -> Any:
        if isinstance(fault, Exception):
            raise fault
        return (fault,)

    vars(backend)["_model"] = _Failing(fail)
    with pytest.raises(DeviceFailedError, match="in the model's forward"):
        backend.decode([DecodeRow(0, 4, 3)])
    calls: list[Callable[[], object]] = [
        lambda: backend.decode([DecodeRow(0, 4, 3)]),
        lambda: backend.prefill([PrefillRow(1, [1, 2])]),
        lambda: backend.release([0]),
    ]
    for call in calls:
        with pytest.raises(DeviceFailedError):
            call()
    backend.close()


class _Failing:
    continuous_batching = True

    def __init__(self, fail: Callable[..., Any]) -> None:
        self._fail = fail

    def __call__(self, **inputs: Any) -> Any:
        return self._fail(**inputs)


def test_a_closed_backend_refuses_everything(models: dict[str, Any]) -> None:
    backend = backend_on(LegacyModelDouble(models["insert"], B, T))
    backend.close()
    backend.close()
    with pytest.raises(DeviceFailedError, match="closed"):
        backend.prefill([PrefillRow(0, [1, 2])])


# -- loading -------------------------------------------------------------------------------------------------

NEURON = {
    "task": "text-generation", "batch_size": 4, "num_cores": 2, "sequence_length": 2048,
    "auto_cast_type": "fp16", "checkpoint_id": None, "checkpoint_revision": None,
    "compiler_type": "neuronx-cc", "compiler_version": "2.12.68.0+4480452af",
}  # fmt: skip


def compiled(root: Path, neuron: dict[str, Any] | None = NEURON, model_type: str = "llama") -> Path:
    config: dict[str, Any] = {"model_type": model_type, "vocab_size": V}
    (root / "config.json").write_text(json.dumps(config | ({"neuron": neuron} if neuron else {})))
    for name in ("compiled", "checkpoint"):
        (root / name).mkdir()
    (root / "compiled" / "0.neff").write_bytes(b"NEFF")
    (root / "checkpoint" / "pytorch_model.bin").write_bytes(b"weights")
    return root


def config_for(root: Path, **changes: Any) -> GeneratorConfig:
    values = {"batch_size": 4, "max_length": 2048, "max_prompt_tokens": 1024, **changes}
    return GeneratorConfig(model_path=str(root), uds_path="unused", backend="neuron_legacy", **values)


def refused(config: GeneratorConfig, rule: str) -> str:
    with pytest.raises((ModelError, ConfigError)) as caught:
        NeuronLegacyBackend.load(config)
    assert caught.value.rule == rule, caught.value
    assert rule in EXIT_CODES
    return str(caught.value)


def test_without_optimum_neuron_the_image_that_has_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optimum.neuron", None)
    text = refused(config_for(compiled(tmp_path)), "backend_unavailable")
    assert "--build-arg NEURON_STACK=legacy" in text


def test_another_generation_of_optimum_neuron_is_told_by_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NeuronModelForCausalLM:
        @classmethod
        def from_pretrained(cls, model_id: str) -> None: ...

        def forward(self, input_ids: Any, position_ids: Any, seq_ids: Any, sampling_params: Any) -> None: ...

    package = types.ModuleType("optimum.neuron")
    vars(package)["NeuronModelForCausalLM"] = NeuronModelForCausalLM
    monkeypatch.setitem(sys.modules, "optimum", types.ModuleType("optimum"))
    monkeypatch.setitem(sys.modules, "optimum.neuron", package)
    text = refused(config_for(compiled(tmp_path)), "backend_unavailable")
    assert "prepare_inputs_for_prefill does not exist" in text
    assert len(missing_from(NeuronModelForCausalLM)) == 5


def test_a_plain_model_is_not_compiled_on_the_way(tmp_path: Path) -> None:
    assert "--backend cpu" in refused(config_for(compiled(tmp_path, None)), "not_a_neuron_model")


def test_a_model_of_the_other_generation_is_sent_to_its_backend(tmp_path: Path) -> None:
    root = compiled(tmp_path, None)
    (root / "neuron_config.json").write_text(json.dumps({"batch_size": 4, "sequence_length": 2048}))
    assert "the backend for it is neuron" in refused(config_for(root), "not_a_neuron_model")


def test_the_first_release_is_recognised_and_refused_with_its_reason(tmp_path: Path) -> None:
    old = {
        "task": "text-generation", "batch_size": 4, "num_cores": 2, "auto_cast_type": "f16",
        "neuron_kwargs": {"n_positions": 2048}, "compiler_type": "neuronx-cc",
        "compiler_version": "2.10.0.34+6c8792f6f",
    }  # fmt: skip
    assert "0.0.11" in refused(config_for(compiled(tmp_path, old)), "unsupported_model")


@pytest.mark.parametrize(
    ("changes", "rule", "words"),
    [
        ({"batch_size": 8}, "batch_size", "--batch-size is 8, but the model was compiled for 4"),
        ({"max_length": 4096}, "max_total_tokens", "compiled for 2048"),
        ({"max_length": 2047}, "max_total_tokens", "compiled for 2048"),
        ({"max_prompt_tokens": 2048}, "max_input_tokens", "from 1 to 2047"),
        ({"max_prompt_tokens": 0}, "max_input_tokens", "from 1 to 2047"),
    ],
)
def test_another_shape_than_the_compiled_one_is_refused(
    tmp_path: Path, changes: dict[str, int], rule: str, words: str
) -> None:
    assert words in refused(config_for(compiled(tmp_path), **changes), rule)


def test_missing_graphs_and_weights_are_found_before_anything_is_imported(tmp_path: Path) -> None:
    root = compiled(tmp_path)
    (root / "checkpoint" / "pytorch_model.bin").unlink()
    (root / "checkpoint").rmdir()
    refused(config_for(root), "weights_missing")
    (root / "compiled" / "0.neff").unlink()
    assert "compiled/" in refused(config_for(root), "weights_missing")


def test_a_path_that_upstream_would_read_as_a_revision_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "gpt2@main"
    root.mkdir()
    assert "gpt2@main" in refused(config_for(compiled(root)), "model")


@pytest.mark.parametrize(
    ("error", "rule", "words"),
    [
        (
            RuntimeError("compiled with neuronx-cc(9) newer than current compiler (2)"),
            "neuron_version",
            "2.12.68.0+4480452af or later",
        ),
        (
            ValueError("number of cores (2) exceeds the number of cores available (1)."),
            "neuron_cores",
            "NEURON_RT_VISIBLE_CORES=0",
        ),
        (
            FileNotFoundError("Could not find a matching NEFF for your HLO in this directory."),
            "neuron_version",
            "compile it again",
        ),
        (ModuleNotFoundError("No module named 'transformers_neuronx'"), "backend_unavailable", "legacy"),
        (KeyError("phi is not supported yet"), "unsupported_model", "phi"),
        (OSError("disk on fire"), "model", "disk on fire"),
    ],
)
def test_what_upstream_raises_while_loading_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, rule: str, words: str
) -> None:
    class NeuronModelForCausalLM:
        @classmethod
        def from_pretrained(cls, model_id: str, export: bool = True) -> None:
            assert not export
            raise error

        def prepare_inputs_for_prefill(self, input_ids: Any, attention_mask: Any, seq_ids: Any) -> None: ...

        def forward(self, input_ids: Any, cache_ids: Any, start_ids: Any, return_dict: Any) -> None: ...

    package = types.ModuleType("optimum.neuron")
    vars(package)["NeuronModelForCausalLM"] = NeuronModelForCausalLM
    monkeypatch.setitem(sys.modules, "optimum", types.ModuleType("optimum"))
    monkeypatch.setitem(sys.modules, "optimum.neuron", package)
    monkeypatch.setenv("NEURON_RT_VISIBLE_CORES", "0")
    assert words in refused(config_for(compiled(tmp_path)), rule)
