"""What of the Neuron backend runs without optimum-neuron; ``tests/hosts/nxd`` has it on upstream's code."""

from __future__ import annotations

import gc
import json
import random
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from backends.scripted_neuron import ScriptedModel, V, alone, scripted
from contract.checked_batch import Batch

from neuron_server import errors
from neuron_server.backend import DecodeRow, DeviceSampling, PrefillRow
from neuron_server.backends import load_backend, neuron_load
from neuron_server.backends.compiled_facts import compiled_facts
from neuron_server.backends.neuron_interface import CONFIG, FORWARD, missing_in_model, missing_names
from neuron_server.config import GeneratorConfig
from neuron_server.engine.engine import Engine, Joiner
from neuron_server.errors import ConfigError, DeviceFailedError, ModelError
from neuron_server.request import GenerationRequest
from neuron_server.shape import StaticShape

B, T, C = 4, 32, 20
SHAPE = StaticShape(B, T)


# -- calls of the graphs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["logits", "tokens"])
@pytest.mark.parametrize("mode", ["insert", "rebuild"])
@pytest.mark.parametrize("options", [{}, {"wrapped": True}, {"padded": 3}], ids=str)
def test_batched_equals_alone_through_300_random_operations(mode: Any, output: Any, options: Any) -> None:
    backend, _ = scripted(SHAPE, C, mode, output, **options)
    batch, rng = Batch(backend, alone), random.Random(7)
    for _ in range(300):
        free = [slot for slot in range(B) if slot not in batch.texts]
        full = [slot for slot, text in batch.texts.items() if len(text) == T]
        choice = rng.random()
        if full:
            batch.free(*full)
        elif choice < 0.25 and free:
            batch.add(*((slot, rng.randint(2, C)) for slot in rng.sample(free, rng.randint(1, len(free)))))
        elif choice < 0.35 and batch.texts:
            batch.free(*rng.sample(sorted(batch.texts), rng.randint(1, len(batch.texts))))
        elif choice < 0.5 and free:
            batch.step(*free[:1])
        elif batch.texts:
            batch.step()
    for slot in batch.texts:
        batch.check(slot)


def test_a_prefill_is_one_full_call_per_prompt_padded_on_the_right() -> None:
    backend, model = scripted(StaticShape(4, 8), 5)
    output = backend.prefill([PrefillRow(3, [7, 8, 9]), PrefillRow(1, [5, 6])])
    assert model.calls == [
        {
            "input_ids": [[7, 8, 9, 0, 0]],
            "position_ids": [[0, 1, 2, 0, 0]],
            "seq_ids": [3],
            "sampling_params": [[1, 1, 1]],
        },
        {
            "input_ids": [[5, 6, 0, 0, 0]],
            "position_ids": [[0, 1, 0, 0, 0]],
            "seq_ids": [1],
            "sampling_params": [[1, 1, 1]],
        },
    ]
    assert output.positions == 10


def test_a_decode_names_every_live_slot_in_the_callers_order_and_no_other() -> None:
    backend, model = scripted(SHAPE, C)
    backend.prefill([PrefillRow(3, [7, 8, 9]), PrefillRow(1, [5, 6])])
    output = backend.decode([DecodeRow(1, 4, 2), DecodeRow(0, 9, 0), DecodeRow(3, 2, 3)])
    assert model.calls[-1]["input_ids"] == [[4], [9], [2]]
    assert model.calls[-1]["position_ids"] == [[2], [0], [3]]
    assert model.calls[-1]["seq_ids"] == [1, 0, 3]
    assert output.positions == B


def test_a_rebuilding_decode_has_every_slot_in_order_and_the_rows_come_back_in_the_callers() -> None:
    backend, model = scripted(SHAPE, C, "rebuild")
    backend.prefill([PrefillRow(3, [7, 8, 9]), PrefillRow(1, [5, 6])])
    output = backend.decode([DecodeRow(3, 2, 3), DecodeRow(1, 4, 2)])
    assert model.calls[-1]["seq_ids"] == [0, 1, 2, 3]
    assert model.calls[-1]["input_ids"] == [[0], [4], [0], [2]]
    assert model.calls[-1]["position_ids"] == [[0], [2], [0], [3]]
    np.testing.assert_array_equal(output.logits[0], alone([7, 8, 9, 2])[-1])
    np.testing.assert_array_equal(output.logits[1], alone([5, 6, 4])[-1])


def test_a_rebuild_of_histories_beyond_the_graph_repeats_the_others_where_they_stand() -> None:
    backend, model = scripted(StaticShape(3, 8), 4, "rebuild")
    texts = {0: [1, 2, 3, 4, 5, 6, 7], 2: [9], 1: [8, 7, 6, 5, 4]}
    output = backend.prefill([PrefillRow(slot, text) for slot, text in texts.items()])
    assert [len(call["input_ids"][0]) for call in model.calls] == [4, 1, 1, 1]
    assert [call["input_ids"] for call in model.calls[1:]] == [
        [[5], [4], [9]],
        [[6], [4], [9]],
        [[7], [4], [9]],
    ]
    assert [call["position_ids"] for call in model.calls[1:]] == [
        [[4], [4], [0]],
        [[5], [4], [0]],
        [[6], [4], [0]],
    ]
    for row, text in zip(output.logits, texts.values(), strict=True):
        np.testing.assert_array_equal(row, alone(text)[-1])
    assert output.positions == 3 * 7


@pytest.mark.parametrize("mode", ["insert", "rebuild"])
def test_every_rows_sampling_reaches_its_row_and_no_later_one(mode: Any) -> None:
    backend, model = scripted(SHAPE, C, mode, "tokens")
    warm, sharp = DeviceSampling(V, 0.5, 1.5), DeviceSampling(8, 1.0, 0.25)
    backend.prefill([PrefillRow(2, [1, 2], sampling=warm), PrefillRow(0, [3, 4], sampling=sharp)])
    backend.decode([DecodeRow(0, 5, 2, sharp), DecodeRow(2, 5, 2, warm)])
    greedy, seen = [1, 1, 1], {}
    for call in model.calls:
        seen |= dict(zip(call["seq_ids"], call["sampling_params"], strict=True))
    assert seen[0] == [8, 1, 0.25]
    assert seen[2] == [V, 0.5, 1.5]
    assert all(seen[slot] == greedy for slot in seen.keys() - {0, 2})
    backend.release([0, 2])
    output = backend.prefill([PrefillRow(slot, [slot, 1]) for slot in range(B)])
    assert all(row == greedy for call in model.calls[-1:] for row in call["sampling_params"])
    assert output.logits.shape == (B, 0)
    assert output.tokens is not None
    assert output.tokens.tolist() == [int(alone([slot, 1])[-1].argmax()) for slot in range(B)]


def test_what_logits_models_ignore_is_not_checked() -> None:
    backend, model = scripted(SHAPE, C)
    backend.prefill([PrefillRow(0, [1, 2], sampling=DeviceSampling(0, 7.0, -1.0))])
    assert model.calls[0]["sampling_params"] == [[1, 1, 1]]


@pytest.mark.parametrize(
    "sampling",
    [
        *(DeviceSampling(top_k=k) for k in (0, -1, V + 1, 1.5, 2.0, True, "3", None)),  # type: ignore[arg-type]
        *(DeviceSampling(top_p=p) for p in (0, 0.0, -0.1, 1.1, float("nan"), "1", None, 1e-46)),  # type: ignore[arg-type]
        *(
            DeviceSampling(temperature=t)
            for t in (0, -1.0, float("nan"), float("inf"), None, 1e-46, 1e39, 10**400)
        ),  # type: ignore[arg-type]
    ],
    ids=str,
)
def test_sampling_that_the_device_cannot_do_is_refused_before_it(sampling: DeviceSampling) -> None:
    backend, model = scripted(SHAPE, C, output="tokens")
    backend.prefill([PrefillRow(1, [1, 2])])
    with pytest.raises(errors.BadSamplingError, match=r"slot 0: (top_k|top_p|temperature) is"):
        backend.prefill([PrefillRow(0, [1, 2], sampling=sampling)])
    with pytest.raises(errors.BadSamplingError):
        backend.decode([DecodeRow(1, 3, 2), DecodeRow(0, 1, 0, sampling)])
    assert len(model.calls) == 1
    backend.decode([DecodeRow(1, 3, 2, DeviceSampling(np.int64(V), np.float32(1.0), 1))])


@pytest.mark.parametrize("mode", ["insert", "rebuild"])
def test_inputs_are_allocated_once_and_a_thousand_steps_take_no_more_memory(mode: Any) -> None:
    backend, model = scripted(StaticShape(2, 1100), 8, mode, "tokens")
    model.answer = torch.zeros(2, dtype=torch.int32)
    rows = [PrefillRow(0, [1, 2]), PrefillRow(1, [3, 4])]
    for row in [rows] if mode == "rebuild" else ([row] for row in rows):
        model.answer = torch.zeros(len(row) if mode == "insert" else 2, dtype=torch.int32)
        backend.prefill(row)
    model.answer = torch.zeros(2, dtype=torch.int32)

    def steps(first: int, last: int) -> None:
        for position in range(first, last):
            model.calls.clear()
            backend.decode([DecodeRow(0, 1, position), DecodeRow(1, 1, position)])

    steps(2, 50)
    model.addresses.clear()
    tracemalloc.start()
    steps(50, 60)
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    steps(60, 1060)
    gc.collect()
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert after - before < 4096
    assert len(model.addresses) == 1


# -- failures below ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [torch.zeros(1, 1, V - 1), torch.zeros(2, 1, V), torch.zeros(1, V), torch.zeros(1, 2, V)],
    ids=lambda tensor: str(tuple(tensor.shape)),
)
def test_a_result_of_another_shape_is_a_failure_of_the_device(answer: torch.Tensor) -> None:
    backend, model = scripted(SHAPE, C)
    model.answer = answer
    with pytest.raises(DeviceFailedError, match="not logits"):
        backend.prefill([PrefillRow(0, [1, 2])])
    with pytest.raises(DeviceFailedError):
        backend.release([])


@pytest.mark.parametrize("answer", [[1, 2], [[1]], 1], ids=str)
def test_tokens_of_another_shape_are_a_failure_of_the_device(answer: Any) -> None:
    backend, model = scripted(SHAPE, C, output="tokens")
    model.answer = torch.tensor(answer)
    with pytest.raises(DeviceFailedError, match="not 1 tokens"):
        backend.prefill([PrefillRow(0, [1, 2])])


@pytest.mark.parametrize("mode", ["insert", "rebuild"])
@pytest.mark.parametrize("stray", [-1, V])
def test_a_token_outside_the_vocabulary_ends_its_own_request_and_no_other(mode: Any, stray: int) -> None:
    """One row without a distribution is no broken device: whose row it is learns of it."""
    backend, model = scripted(SHAPE, C, mode, "tokens")
    engine: Engine[str] = Engine(backend)
    requests = {key: GenerationRequest((n, 7), 2, max_new_tokens=8) for n, key in enumerate("ab")}
    engine.place([Joiner(key, request, 0.0) for key, request in requests.items()])
    model.answer = torch.tensor([5, stray, 6, 6][: 2 if mode == "insert" else B])
    outcome = engine.step()
    assert [(key, event.token_id) for key, event in outcome.tokens] == [("a", 5)]
    [(key, error)] = outcome.errors
    assert (key, engine.running) == ("b", 1)
    assert f"token {stray} " in str(error)
    model.answer = None
    assert [key for key, _ in engine.step().tokens] == ["a"]


@pytest.mark.parametrize("failure", [RuntimeError("NRT_EXEC_BAD"), IndexError("index 9"), SystemError("no")])
def test_whatever_a_forward_raises_kills_the_backend(failure: Exception) -> None:
    backend, model = scripted(SHAPE, C)
    backend.prefill([PrefillRow(0, [1, 2])])
    model.fails = failure
    with pytest.raises(DeviceFailedError, match=type(failure).__name__):
        backend.decode([DecodeRow(0, 3, 2)])
    model.fails = None
    for call in (
        lambda: backend.decode([DecodeRow(0, 3, 2)]),
        lambda: backend.prefill([PrefillRow(1, [1, 2])]),
        lambda: backend.release([0]),
    ):
        with pytest.raises(DeviceFailedError, match=type(failure).__name__):
            call()
    backend.close()


# -- loading -----------------------------------------------------------------------------------------------

COMPILED = {
    "_serialized_key": "NxDNeuronConfig", "batch_size": 4, "max_batch_size": 4, "sequence_length": 32,
    "max_context_length": 20, "continuous_batching": True, "on_device_sampling": False, "max_topk": 256,
    "tp_degree": 2, "pp_degree": 1, "ep_degree": 1, "torch_dtype": "bfloat16", "target": "trn1",
    "speculation_length": 0, "output_logits": False, "optimum_neuron_version": "0.4.5",
    "neuronxcc_version": "2.21.33363.0+82129205",
}  # fmt: skip

Write = Callable[..., GeneratorConfig]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A directory as an export leaves it, and the generator's settings for it."""

    def write(settings: dict[str, Any] | None = None, **keys: Any) -> GeneratorConfig:
        config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": V}
        (tmp_path / "config.json").write_text(json.dumps(config))
        (tmp_path / "neuron_config.json").write_text(json.dumps(COMPILED | keys))
        values = {"batch_size": B, "max_length": T, "max_prompt_tokens": C, "backend": "neuron"}
        return GeneratorConfig(str(tmp_path), "", **(values | (settings or {})))

    return write


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """An optimum-neuron 0.4.5 that loads a scripted model, or raises ``fails``."""
    state = SimpleNamespace(fails=None, loaded=None, versions={"optimum-neuron": "0.4.5"})

    class Factory:
        @staticmethod
        def from_pretrained(path: str) -> Any:
            if state.fails is not None:
                raise state.fails
            return state.loaded

    optimum, neuron, compiler = ModuleType("optimum"), ModuleType("optimum.neuron"), ModuleType("neuronxcc")
    neuron.NeuronModelForCausalLM = Factory  # type: ignore[attr-defined]
    compiler.__version__ = "2.21.33363.0+82129205"  # type: ignore[attr-defined]
    for module in (optimum, neuron, compiler):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(neuron_load, "metadata", SimpleNamespace(version=state.versions.__getitem__))
    monkeypatch.setattr(neuron_load, "_loaded", [])
    state.factory, state.compiler = Factory, compiler
    return state


def refused(config: GeneratorConfig) -> ModelError:
    with pytest.raises(ModelError) as caught:
        load_backend(config)
    return caught.value


def test_a_machine_without_optimum_neuron_is_told_what_to_install(write: Write) -> None:
    config = write()
    program = (
        "import sys; from neuron_server.backends import load_backend; from neuron_server.config import *\n"
        "from neuron_server.errors import ModelError\n"
        f"try: load_backend(GeneratorConfig({config.model_path!r}, '', {B}, {T}, {C}, backend='neuron'))\n"
        "except ModelError as error: print(error.rule, error)"
    )
    said = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert said.startswith("backend_unavailable --backend neuron cannot run here: optimum-neuron is not")
    for words in ("image", "pip install", "--backend cpu"):
        assert words in said


def test_a_loaded_model_is_served_as_its_files_say(write: Write, installed: SimpleNamespace) -> None:
    config = write(on_device_sampling=True, max_topk=64)
    _, installed.loaded = scripted(SHAPE, C, output="tokens")
    info = load_backend(config).info
    assert (info.shape, info.max_prompt_tokens, info.vocab_size) == (SHAPE, C, V)
    assert (info.output, info.max_top_k, info.prefill_mode) == ("tokens", 64, "insert")
    assert (info.dtype, info.device) == ("bfloat16", "neuron (trn1 target, tp 2)")
    assert not info.can_score_prompt


@pytest.mark.parametrize(
    ("keys", "mode"),
    [
        ({}, "insert"),
        ({"continuous_batching": False}, "rebuild"),
        ({"batch_size": 1, "max_batch_size": 1, "continuous_batching": False}, "insert"),
        ({"batch_size": 1, "max_batch_size": 1}, "insert"),
    ],
    ids=str,
)
def test_how_it_was_compiled_decides_between_inserting_and_rebuilding(
    write: Write, keys: dict[str, Any], mode: str
) -> None:
    config = write({"batch_size": keys.get("batch_size", B)}, **keys)
    facts, static = compiled_facts(config, "nxd")
    assert neuron_load.backend_info(facts, static, C).prefill_mode == mode


def test_the_longest_prompt_leaves_room_for_one_token(write: Write) -> None:
    config = write({"max_prompt_tokens": T}, max_context_length=T)
    with pytest.raises(ConfigError, match=f"must be from 1 to {T - 1}"):
        load_backend(config)


@pytest.mark.parametrize(
    ("settings", "rule", "right"),
    [
        ({"batch_size": 2}, "batch_size", "set it to 4"),
        ({"max_length": 16, "max_prompt_tokens": 8}, "max_total_tokens", "set it to 32"),
        ({"max_length": 64}, "max_total_tokens", "set it to 32"),
        ({"max_prompt_tokens": 21}, "max_input_tokens", "from 1 to 20"),
        ({"max_prompt_tokens": 0}, "max_input_tokens", "from 1 to 20"),
    ],
)
def test_another_shape_than_the_compiled_is_refused(
    write: Write, settings: dict[str, Any], rule: str, right: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_backend(write(settings))
    assert caught.value.rule == rule
    assert right in str(caught.value)


@pytest.mark.parametrize(
    "keys",
    [
        {"speculation_length": 4},
        {"prefill_chunk_size": 8},
        {"output_logits": True},
        {"padding_side": "left"},
        {"async_mode": True},
        {"is_chunked_prefill": True},
        {"enable_bucketing": True},
        {"_serialized_key": "HloNeuronConfig"},
        {"_serialized_key": "NxDVLMNeuronConfig"},
        {"max_batch_size": 8},
        {"max_context_length": 1},
    ],
    ids=str,
)
def test_what_cannot_be_served_is_refused_by_its_key(write: Write, keys: dict[str, Any]) -> None:
    config = write({"batch_size": keys.get("max_batch_size", B)}, **keys)
    error = refused(config)
    assert error.rule == "unsupported_model"
    assert next(iter(keys)) in str(error)
    assert config.model_path in str(error)


def test_models_of_the_legacy_generation_and_plain_ones_are_sent_elsewhere(write: Write) -> None:
    config = write()
    root = Path(config.model_path)
    (root / "neuron_config.json").unlink()
    error = refused(config)
    assert error.rule == "not_a_neuron_model"
    assert "export" in str(error)
    section = {"batch_size": 4, "sequence_length": 32, "num_cores": 2, "auto_cast_type": "fp16"}
    (root / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": V, "neuron": section}))
    error = refused(config)
    assert error.rule == "not_a_neuron_model"
    assert "neuron_legacy" in str(error)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe\x00", b'{"batch_size": "four"}', b"[" * 100_000])
def test_a_neuron_config_that_is_none_is_corrupt(write: Write, content: bytes) -> None:
    config = write()
    (Path(config.model_path) / "neuron_config.json").write_bytes(content)
    assert refused(config).rule == "config_corrupt"


@pytest.mark.parametrize(
    ("failure", "rule"),
    [
        (
            ValueError("The model was compiled for trn2 but the current instance type is trn1."),
            "neuron_target",
        ),
        (ValueError("The model requires at least 8 Neuron cores but only 2 are available."), "neuron_cores"),
        (RuntimeError("No Neuron device detected."), "no_neuron_device"),
        (TypeError("NxDNeuronConfig.__init__() got an unexpected keyword argument 'x'"), "neuron_version"),
        (RuntimeError("The PyTorch Neuron Runtime could not be initialized."), "neuron_driver"),
        (RuntimeError("nrt_init failed: status 1"), "neuron_driver"),
        (ModuleNotFoundError("No module named 'neuronx_distributed'"), "backend_unavailable"),
        (ValueError("Checkpoint file not found under /models/x."), "weights_missing"),
        (OSError("connection refused"), "model"),
        (AssertionError(), "model"),
        (MemoryError(), "model"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_upstream_raises_gets_a_rule_and_keeps_its_words(
    write: Write, installed: SimpleNamespace, failure: Exception, rule: str
) -> None:
    installed.fails = failure
    error = refused(write())
    assert error.rule == rule
    assert str(failure) in str(error)
    assert error.__cause__ is failure


def test_other_versions_than_the_installed_are_refused_before_upstream_is_asked(
    write: Write, installed: SimpleNamespace
) -> None:
    installed.fails = AssertionError("asked")
    error = refused(write(optimum_neuron_version="0.4.4"))
    assert error.rule == "neuron_version"
    assert "optimum-neuron 0.4.4, but 0.4.5 is installed" in str(error)
    error = refused(write(neuronxcc_version="2.20.1"))
    assert error.rule == "neuron_version"
    assert "neuronx-cc 2.20.1, but 2.21.33363.0+82129205 is installed" in str(error)


def test_a_release_with_another_interface_is_refused_by_what_it_lacks(
    write: Write, installed: SimpleNamespace
) -> None:
    class Changed(ScriptedModel):
        def forward(self, input_ids: Any, positions: Any, sampling_params: Any) -> Any:  # type: ignore[override]
            raise AssertionError("called")

    backend, _ = scripted(SHAPE, C)
    installed.loaded = Changed(backend.info, C)
    error = refused(write())
    assert error.rule == "neuron_version"
    assert "Changed.forward takes no position_ids; Changed.forward takes no seq_ids" in str(error)


def test_a_second_model_in_one_process_is_refused(write: Write, installed: SimpleNamespace) -> None:
    _, installed.loaded = scripted(SHAPE, C)
    config = write()
    load_backend(config).close()
    assert "a process of its own" in str(refused(config))


def test_a_model_that_upstream_reads_otherwise_is_refused(write: Write, installed: SimpleNamespace) -> None:
    _, installed.loaded = scripted(SHAPE, C)
    installed.loaded.neuron_config.max_context_length = T
    error = refused(write())
    assert error.rule == "config_corrupt"
    assert "max_context_length was read as 20, but optimum-neuron loaded 32" in str(error)


def test_drift_is_told_name_by_name() -> None:
    class Config:
        def __init__(self, batch_size: int) -> None:
            self.batch_size = batch_size

    class Model:
        pass

    assert missing_names(Model) == ["Model has no from_pretrained"]
    lines = missing_in_model(Model, Config)
    assert "Model has no forward" in lines
    assert all(any(name in line for line in lines) for name in (*FORWARD, *CONFIG[1:]))
    assert "Config has no batch_size" not in lines
    backend, model = scripted(SHAPE, C)
    assert backend.info.shape == SHAPE
    assert missing_in_model(model, model.neuron_config) == []
