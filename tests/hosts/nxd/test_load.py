"""``NeuronBackend.load`` on upstream's own loading: what it takes, and what each refusal says.

Of the machine only what loading asks is stood in for (``upstream.fake_device``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contract.subject import Wanted
from hosts.nxd import subject, tiny_model, upstream
from hosts.nxd.stand_ins import COMPILER_VERSION

from neuron_server.backend import DecodeRow, PrefillRow
from neuron_server.backends import load_backend, neuron_load
from neuron_server.backends.neuron import NeuronBackend
from neuron_server.config import GeneratorConfig
from neuron_server.errors import DeviceFailedError, ModelError
from neuron_server.shape import StaticShape

WANTED = Wanted(StaticShape(4, 32), 20)

checks_the_machine = pytest.mark.skipif(
    upstream.installed() == "0.3.0", reason="0.3 does not look at the machine"
)


@pytest.fixture(autouse=True)
def _fresh_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    upstream.stand_in()
    monkeypatch.setattr(neuron_load, "_loaded", [])
    return


def config(path: Path) -> GeneratorConfig:
    return GeneratorConfig(str(path), "", 4, 32, 20, backend="neuron")


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    file = path / "neuron_config.json"
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


def refusal(path: Path, **machine: Any) -> ModelError:
    with upstream.fake_device(**machine), pytest.raises(ModelError) as caught:
        load_backend(config(path))
    return caught.value


@pytest.mark.parametrize("sharded", [True, False])
def test_a_compiled_model_is_loaded_with_its_weights_sharded_or_plain(tmp_path: Path, sharded: bool) -> None:
    tiny_model.write_model(tmp_path, WANTED, sharded=sharded)
    with upstream.fake_device():
        backend = load_backend(config(tmp_path))
    info = backend.info
    assert (info.shape, info.max_prompt_tokens, info.vocab_size) == (StaticShape(4, 32), 20, 64)
    assert (info.prefill_mode, info.output, info.max_top_k) == ("insert", "logits", 0)
    assert (info.dtype, info.device) == ("float32", "neuron (trn1 target, tp 1)")
    text = [3, 1, 4, 1, 5]
    logits = backend.prefill([PrefillRow(2, text)]).logits
    np.testing.assert_allclose(logits[0], tiny_model.alone(text)[-1], atol=1e-4)


@pytest.mark.parametrize("fused_qkv", [True, False])
def test_projections_compiled_apart_or_together_compute_the_same(tmp_path: Path, fused_qkv: bool) -> None:
    tiny_model.write_model(tmp_path, WANTED, sharded=False, fused_qkv=fused_qkv)
    with upstream.fake_device():
        backend = load_backend(config(tmp_path))
    logits = backend.prefill([PrefillRow(0, [7, 8, 9])]).logits
    np.testing.assert_allclose(logits[0], tiny_model.alone([7, 8, 9])[-1], atol=1e-4)


def test_one_slot_without_continuous_batching_is_inserted_into(tmp_path: Path) -> None:
    backend = subject.make(Wanted(StaticShape(1, 16), 8, "rebuild"))
    assert backend.info.prefill_mode == "insert"
    logits = backend.decode([DecodeRow(0, 9, 0)]).logits
    np.testing.assert_allclose(logits[0], tiny_model.alone([9])[-1], atol=1e-4)
    backend.release([0])
    backend.prefill([PrefillRow(0, [1, 2, 3])])
    logits = backend.decode([DecodeRow(0, 4, 3)]).logits
    np.testing.assert_allclose(logits[0], tiny_model.alone([1, 2, 3, 4])[-1], atol=1e-4)


def test_a_rebuild_feeds_what_the_prefill_graph_cannot_take_through_decode_steps() -> None:
    backend = subject.make(Wanted(StaticShape(3, 16), 4, "rebuild"))
    texts = {2: list(range(20, 31)), 0: [5], 1: [9, 8, 7, 6, 5, 4]}
    output = backend.prefill([PrefillRow(slot, text) for slot, text in texts.items()])
    for row, text in zip(output.logits, texts.values(), strict=True):
        np.testing.assert_allclose(row, tiny_model.alone(text)[-1], atol=1e-4)
    assert [call.graph for call in subject.calls(backend)] == ["prefill", *["decode"] * 7]
    assert output.positions == 3 * (4 + 7)
    output = backend.decode([DecodeRow(slot, 2, len(text)) for slot, text in texts.items()])
    for row, text in zip(output.logits, texts.values(), strict=True):
        np.testing.assert_allclose(row, tiny_model.alone([*text, 2])[-1], atol=1e-4)


def test_a_model_of_another_release_is_refused_before_upstream_is_asked(tmp_path: Path) -> None:
    tiny_model.write_model(tmp_path, WANTED)
    edit(tmp_path, lambda values: values.update(optimum_neuron_version="0.4.4"))
    error = refusal(tmp_path)
    assert error.rule == "neuron_version"
    for words in ("optimum-neuron 0.4.4", f"{upstream.installed()} is installed", "compile it again"):
        assert words in str(error)


def test_a_model_of_another_compiler_is_refused_with_both_versions(tmp_path: Path) -> None:
    tiny_model.write_model(tmp_path, WANTED)
    edit(tmp_path, lambda values: values.update(neuronxcc_version="2.21.33363.0+00000000"))
    error = refusal(tmp_path)
    assert error.rule == "neuron_version"
    assert "2.21.33363.0+00000000" in str(error)
    assert COMPILER_VERSION in str(error)


def test_a_key_that_upstream_does_not_know_is_a_matter_of_versions(tmp_path: Path) -> None:
    tiny_model.write_model(tmp_path, WANTED)
    edit(tmp_path, lambda values: values.update(from_the_future=1))
    error = refusal(tmp_path)
    assert error.rule == "neuron_version"
    assert "from_the_future" in str(error)


def test_a_missing_key_that_upstream_reads_otherwise_than_we_do_is_not_glossed_over(tmp_path: Path) -> None:
    tiny_model.write_model(tmp_path, WANTED)
    edit(tmp_path, lambda values: values.pop("continuous_batching"))
    error = refusal(tmp_path)
    assert error.rule == "config_corrupt"
    assert "continuous_batching" in str(error)


@checks_the_machine
def test_a_model_for_another_kind_of_device_is_refused(tmp_path: Path) -> None:
    tiny_model.write_model(tmp_path, WANTED, target="trn2")
    assert refusal(tmp_path).rule == "neuron_target"


@checks_the_machine
def test_a_model_for_more_cores_than_there_are_is_refused(tmp_path: Path) -> None:
    tiny_model.write_model(tmp_path, WANTED, tp_degree=8)
    assert refusal(tmp_path).rule == "neuron_cores"


@checks_the_machine
def test_a_machine_without_a_device_is_told_so(tmp_path: Path) -> None:
    tiny_model.write_model(tmp_path, WANTED)
    with pytest.raises(ModelError) as caught:
        load_backend(config(tmp_path))
    assert caught.value.rule == "no_neuron_device"


def test_weights_that_are_nowhere_are_missed(tmp_path: Path) -> None:
    tiny_model.write_model(tmp_path, WANTED)
    (tmp_path / "checkpoint").unlink()
    assert refusal(tmp_path).rule == "weights_missing"


def test_a_model_file_that_is_none_is_reported_with_what_upstream_said(tmp_path: Path) -> None:
    tiny_model.write_model(tmp_path, WANTED)
    (tmp_path / "model.pt").write_bytes(b"\0" * 64)
    jit_load = torch.jit.load
    with upstream.fake_device(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.jit, "load", jit_load)
        with pytest.raises(ModelError) as caught:
            load_backend(config(tmp_path))
    assert caught.value.rule == "model"
    assert str(tmp_path) in str(caught.value)


def test_a_process_holds_one_model(tmp_path: Path) -> None:
    tiny_model.write_model(tmp_path, WANTED)
    with upstream.fake_device():
        load_backend(config(tmp_path)).close()
    error = refusal(tmp_path)
    assert str(tmp_path) in str(error)
    assert "a process of its own" in str(error)


def test_a_failure_of_the_device_kills_the_backend(tmp_path: Path) -> None:
    tiny_model.write_model(tmp_path, WANTED)
    with upstream.fake_device() as loaded:
        backend = NeuronBackend.load(config(tmp_path))
    backend.prefill([PrefillRow(0, [1, 2, 3])])
    loaded[-1].graphs.clear()
    with pytest.raises(DeviceFailedError, match="no graph was compiled"):
        backend.decode([DecodeRow(0, 4, 3)])
    for call in (lambda: backend.prefill([PrefillRow(1, [1, 2])]), lambda: backend.release([0])):
        with pytest.raises(DeviceFailedError):
            call()


def test_nothing_the_product_uses_of_this_release_is_missing() -> None:
    assert subject.drift() == []


def test_the_gaps_that_the_stand_ins_leave_are_the_recorded_ones() -> None:
    handed_out, recorded = subject.placeholders()
    assert handed_out == recorded
