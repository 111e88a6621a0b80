"""What is particular to the CPU backend; what it shares with all is in ``tests/contract``."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, dynamic_module_utils

from neuron_server.backend import DecodeRow, PrefillRow
from neuron_server.backends.cpu import CpuBackend
from neuron_server.config import GeneratorConfig
from neuron_server.errors import DeviceFailedError, ModelError
from neuron_server.shape import StaticShape

B, T, C, V = 4, 32, 20, 64


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=V, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=T, initializer_range=0.4,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("llama")
    LlamaForCausalLM(config).save_pretrained(path)
    return path


def load(path: Path, **settings: Any) -> CpuBackend:
    values = {"batch_size": B, "max_length": T, "max_prompt_tokens": C, **settings}
    return CpuBackend.load(GeneratorConfig(model_path=str(path), uds_path="", **values))


def refused(path: Path, **settings: Any) -> ModelError:
    with pytest.raises(ModelError) as caught:
        load(path, **settings)
    return caught.value


def edited(path: Path, target: Path, **changes: Any) -> Path:
    """A copy of the model with another config."""
    config = json.loads((path / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **changes}))
    (target / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes())
    return target


def record_shapes(backend: CpuBackend) -> set[tuple[tuple[int, ...], ...]]:
    """Shapes of the tokens, and of the keys that attention sees, of each forward from now on."""
    seen: set[tuple[tuple[int, ...], ...]] = set()
    layer = backend._cache.static_layers[0]
    update = layer.update

    def spy(keys: torch.Tensor, values: torch.Tensor, kwargs: Any = None) -> Any:
        result = update(keys, values, kwargs)
        seen.add((tuple(keys.shape), tuple(result[0].shape)))
        return result

    layer.update = spy  # type: ignore[method-assign]
    return seen


def run(backend: CpuBackend) -> None:
    for length in (2, 7, C):
        backend.prefill([PrefillRow(2, [1] * length)])
        backend.decode([DecodeRow(2, 1, length), DecodeRow(0, 1, 0)])
        backend.decode([DecodeRow(0, 1, 1), DecodeRow(2, 1, length + 1)])
        backend.release([0, 2])


def test_strict_sees_only_two_static_shapes(directory: Path) -> None:
    backend = load(directory, strict=True)
    seen = record_shapes(backend)
    run(backend)
    prefill, decode = (1, 2, C, 8), (B, 2, 1, 8)
    assert seen == {(prefill, prefill), (decode, (B, 2, T, 8))}


def test_strict_rebuild_prefills_the_whole_length(directory: Path) -> None:
    backend = load(directory, strict=True, prefill_mode="rebuild")
    seen = record_shapes(backend)
    backend.prefill([PrefillRow(0, [1])])
    assert seen == {((1, 2, T, 8), (1, 2, T, 8))}


def test_fast_computes_only_the_rows_and_columns_in_use(directory: Path) -> None:
    backend = load(directory)
    seen = record_shapes(backend)
    backend.prefill([PrefillRow(2, [1] * 7)])
    backend.decode([DecodeRow(2, 1, 7)])
    assert seen == {((1, 2, 7, 8), (1, 2, 7, 8)), ((1, 2, 1, 8), (1, 2, 8, 8))}


def test_the_cache_is_allocated_once_and_attention_sees_a_view_of_it(directory: Path) -> None:
    for strict in (False, True):
        backend = load(directory, strict=strict)
        layer = backend._cache.static_layers[0]
        place = layer.keys.data_ptr()
        run(backend)
        assert layer.keys.data_ptr() == place
        assert layer.keys.shape == (B, 2, T, 8)
        backend.prefill([PrefillRow(0, [1, 2])])
        backend.decode([DecodeRow(0, 1, 2)])
        keys, _ = layer.update(torch.zeros(layer.window.rows.shape[0], 2, 1, 8), torch.zeros(1, 2, 1, 8))
        assert keys.untyped_storage().data_ptr() == layer.keys.untyped_storage().data_ptr()


def test_only_the_last_position_of_a_prompt_goes_through_the_head(directory: Path) -> None:
    backend = load(directory, strict=True)
    widths: list[int] = []
    head = backend._lm.model.get_output_embeddings()
    head.register_forward_hook(lambda module, args, output: widths.append(args[0].shape[1]))
    backend.prefill([PrefillRow(0, [1] * 9), PrefillRow(1, [1] * 9, prompt_logprobs=True)])
    assert widths == [1, C]


# -- poison --------------------------------------------------------------------------------------------------


def cells(backend: CpuBackend, slot: int) -> torch.Tensor:
    """Largest key of each column of a slot; (T,)."""
    return backend._cache.static_layers[1].keys[slot].abs().amax(dim=(0, 2)).clone()


def is_garbage(backend: CpuBackend, slot: int) -> list[int]:
    return [column for column, size in enumerate(cells(backend, slot)) if size > 50]


def test_poison_is_written_where_a_device_writes(directory: Path) -> None:
    backend = load(directory, poison=True)
    backend.prefill([PrefillRow(1, [1, 2, 3])])
    assert is_garbage(backend, 1) == list(range(3, C))
    assert is_garbage(backend, 0) == []
    backend.decode([DecodeRow(1, 4, 3)])
    assert is_garbage(backend, 1) == list(range(4, C))
    assert is_garbage(backend, 0) == is_garbage(backend, 3) == [0, 3]
    backend.release([1])
    assert is_garbage(backend, 1) == list(range(T))


def test_a_rebuild_poisons_every_slot_that_it_leaves_out(directory: Path) -> None:
    backend = load(directory, poison=True, prefill_mode="rebuild")
    backend.prefill([PrefillRow(1, [1, 2, 3])])
    assert is_garbage(backend, 1) == list(range(3, T))
    assert all(is_garbage(backend, slot) == list(range(T)) for slot in (0, 2, 3))


def test_poison_is_finite_in_every_type(directory: Path) -> None:
    for dtype in ("float32", "bfloat16", "float16"):
        backend = load(directory, poison=True, dtype=dtype)
        backend.prefill([PrefillRow(1, [1, 2, 3]), PrefillRow(3, [4, 5])])
        for step in range(3):
            rows = [DecodeRow(1, 4, 3 + step), DecodeRow(3, 4, 2 + step)]
            assert np.isfinite(backend.decode(rows).logits).all()
        assert all(torch.isfinite(layer.keys).all() for layer in backend._cache.static_layers)


def test_poison_would_show_if_a_live_slot_were_attended_too_far(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mask that is one column too wide changes the logits by far more than rounding."""
    right, wrong = load(directory, poison=True), load(directory, poison=True)
    rows = [PrefillRow(0, [1, 2, 3]), PrefillRow(1, [4, 5])]
    steps = [DecodeRow(0, 1, 3), DecodeRow(1, 1, 2)]
    right.prefill(rows)
    wrong.prefill(rows)
    expected = right.decode(steps).logits
    from neuron_server.backends import causal_lm, masks

    monkeypatch.setattr(causal_lm, "decode_mask", lambda plan, p, w, d: masks.decode_mask(plan, p + 1, w, d))
    assert np.abs(wrong.decode(steps).logits - expected).max() > 0.1


# -- types and failures --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_type_gives_float32_logits_near_those_of_float32(directory: Path, dtype: Any) -> None:
    reference, backend = load(directory), load(directory, dtype=dtype)
    assert backend.info.dtype == dtype
    assert backend._cache.static_layers[0].keys.dtype == getattr(torch, dtype)
    rows = [PrefillRow(0, list(range(9))), PrefillRow(3, [5, 6])]
    one, other = reference.prefill(rows).logits, backend.prefill(rows).logits
    assert other.dtype == np.float32
    assert np.abs(one - other).max() < 0.03 * np.ptp(one)


def test_float16_is_upcast_with_a_warning_where_the_cpu_cannot(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    forward = LlamaForCausalLM.forward

    def without_half(self: LlamaForCausalLM, *args: Any, **kwargs: Any) -> Any:
        if self.dtype == torch.float16:
            raise RuntimeError("\"addmm_impl_cpu_\" not implemented for 'Half'")
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(LlamaForCausalLM, "forward", without_half)
    with caplog.at_level(logging.WARNING):
        backend = load(directory, dtype="float16")
    assert backend.info.dtype == "float32"
    assert "upcast" in caplog.text


def test_a_failure_in_the_forward_kills_the_backend(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = load(directory)
    backend.prefill([PrefillRow(0, [1, 2])])

    def fail(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("the device is on fire")

    with monkeypatch.context() as broken:
        broken.setattr(backend._lm, "_forward", fail)
        with pytest.raises(DeviceFailedError, match=r"ZeroDivisionError .* on fire"):
            backend.decode([DecodeRow(0, 1, 2)])
    for call in (lambda: backend.decode([DecodeRow(0, 1, 2)]), lambda: backend.release([0])):
        with pytest.raises(DeviceFailedError, match="on fire"):
            call()


# -- loading -------------------------------------------------------------------------------------------------


def test_info_says_what_was_loaded(directory: Path) -> None:
    info = load(directory, prefill_mode="rebuild").info
    assert info.shape == StaticShape(B, T)
    assert (info.max_prompt_tokens, info.vocab_size, info.prefill_mode, info.output) == (
        C,
        V,
        "rebuild",
        "logits",
    )
    assert (info.dtype, info.device, info.can_score_prompt) == ("float32", "cpu", True)


def test_a_length_beyond_the_positions_is_refused(directory: Path) -> None:
    error = refused(directory, max_length=T + 1)
    assert error.rule == "max_positions"
    assert "32 positions" in str(error)


def test_missing_tensors_are_not_filled_with_noise(directory: Path, tmp_path: Path) -> None:
    error = refused(edited(directory, tmp_path, num_hidden_layers=3))
    assert error.rule == "weights_corrupt"
    assert "model.layers.2" in str(error)


def test_tensors_of_another_shape_are_refused(directory: Path, tmp_path: Path) -> None:
    error = refused(edited(directory, tmp_path, intermediate_size=50))
    assert error.rule == "weights_corrupt"


def test_truncated_weights_are_refused(directory: Path, tmp_path: Path) -> None:
    path = edited(directory, tmp_path)
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    assert refused(path).rule == "weights_corrupt"


def test_pickled_weights_are_refused(directory: Path, tmp_path: Path) -> None:
    path = edited(directory, tmp_path)
    (path / "model.safetensors").unlink()
    torch.save({}, path / "pytorch_model.bin")
    assert refused(path).rule == "weights_missing"


def test_an_unknown_model_type_is_refused(directory: Path, tmp_path: Path) -> None:
    error = refused(edited(directory, tmp_path, model_type="from_the_future"))
    assert error.rule == "unsupported_model"
    assert "from_the_future" in str(error)


def test_a_config_that_transformers_cannot_build_is_refused(directory: Path, tmp_path: Path) -> None:
    error = refused(edited(directory, tmp_path, hidden_act="no_such_function"))
    assert error.rule == "unsupported_model"


def test_code_in_the_model_directory_does_not_run_unless_trusted(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = edited(
        directory,
        tmp_path,
        model_type="own_code",
        auto_map={"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"},
    )
    (path / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own_code'\n"
        "class OwnForCausalLM(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    error = refused(path)
    assert error.rule == "unsupported_model"
    assert "--trust-remote-code" in str(error)
    assert load(path, trust_remote_code=True).info.vocab_size == V


def test_a_tied_head_is_not_missing(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=V, n_embd=32, n_layer=1, n_head=4, n_positions=T)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    assert load(tmp_path).info.vocab_size == V
