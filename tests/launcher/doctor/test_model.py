from __future__ import annotations

import json
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from device import machines

import neuron_server
from launcher.doctor import model

sys.path.insert(0, str(Path(__file__).parent))
from examined import case, lines

DEMO = Path(neuron_server.__file__).parent / "demo_model"
NXD = {
    "_serialized_key": "NxDNeuronConfig",
    "batch_size": 2,
    "continuous_batching": True,
    "max_batch_size": 2,
    "max_context_length": 128,
    "n_active_tokens": 128,
    "neuronxcc_version": "2.21.33363.0+82129205",
    "on_device_sampling": False,
    "optimum_neuron_version": "0.4.5",
    "output_logits": False,
    "sequence_length": 128,
    "target": "trn1",
    "torch_dtype": "bfloat16",
    "tp_degree": 2,
}


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    """A copy of the embedded model, to break."""
    return Path(shutil.copytree(DEMO, tmp_path / "model"))


@pytest.fixture
def cpu(tmp_path: Path) -> Path:
    """A machine without devices."""
    return machines.no_device(tmp_path / "cpu")


@pytest.fixture
def inf2(tmp_path: Path) -> Path:
    """A healthy inf2.xlarge."""
    return machines.inf2_xlarge(tmp_path / "inf2")


def compiled(path: Path, **changes: Any) -> Path:
    """The model as optimum-neuron 0.4.5 leaves it, as far as it can be seen from outside."""
    (path / "neuron_config.json").write_text(json.dumps({**NXD, **changes}))
    with zipfile.ZipFile(path / "model.pt", "w") as archive:  # the form of TorchScript
        archive.writestr("model/data.pkl", b"graphs")
    return path


def said(root: Path, path: Path, **values: Any) -> dict[str, list[str]]:
    """Lines by check."""
    found: dict[str, list[str]] = {}
    for finding in model.model(case(root, model_id=str(path), **values)):
        found.setdefault(finding.check, []).append(str(finding))
    return found


def test_without_a_model_none_is_looked_at(cpu):
    assert lines(model.model, cpu) == ["ok    model: no --model-id, so none is looked at"]


def test_a_whole_model_is_all_well_on_the_cpu(cpu, demo):
    found = said(cpu, demo)
    assert list(found) == ["model", "weights", "tokenizer", "chat template", "plan"]
    assert all(line.startswith("ok") for group in found.values() for line in group)
    assert found["plan"] == ["ok    plan: 1 replica(s) of 4 x 2048 tokens in float32 on cpu"]


def test_a_path_to_nowhere_fails(cpu, tmp_path):
    (line,) = said(cpu, tmp_path / "missing")["model"]
    assert line.startswith("FAIL  model: --model-id is ")
    (line,) = said(cpu, machines.write(tmp_path, "file", ""))["model"]
    assert "which is a file, not a directory" in line


def test_a_hub_model_that_is_not_here_is_not_looked_at(cpu):
    (line,) = lines(model.model, cpu, model_id="meta-llama/Llama-3.1-8B")
    assert (
        line == "ok    model: meta-llama/Llama-3.1-8B is not on this machine yet: nothing of it is looked at"
    )


@pytest.mark.parametrize("revision", [None, "v1", "abc123"])
def test_a_hub_model_in_the_cache_is_looked_at(cpu, demo, revision):
    home = "home/user/.cache/huggingface/hub/models--me--demo"
    shutil.copytree(demo, cpu / home / "snapshots/abc123")
    machines.write(cpu, f"{home}/refs/main", "abc123\n")
    machines.write(cpu, f"{home}/refs/v1", "abc123\n")
    found = [*model.model(case(cpu, model_id="me/demo", revision=revision))]
    assert [f.check for f in found] == ["model", "weights", "tokenizer", "chat template", "plan"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe\x00", b"[" * 100_000])
def test_a_broken_config_is_one_failure_and_no_more(cpu, demo, content):
    (demo / "config.json").write_bytes(content)
    found = said(cpu, demo)
    assert list(found) == ["model"]
    assert found["model"][0].startswith("FAIL  model: ")
    assert "config.json" in found["model"][0]


def test_a_family_that_cannot_be_served_fails(cpu, demo):
    (demo / "config.json").write_text('{"model_type": "mamba", "vocab_size": 10}')
    assert said(cpu, demo)["model"][0].startswith("FAIL  model: model type 'mamba' keeps a recurrent state")


def test_missing_and_cut_weights_fail(cpu, demo):
    weights = demo / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert said(cpu, demo)["weights"][0].startswith("FAIL  weights: ")
    weights.unlink()
    assert said(cpu, demo)["weights"][0].startswith("FAIL  weights: ")


def test_weights_that_do_not_fit_the_host_warn(demo, tmp_path):
    root = machines.machine(tmp_path / "small", memory=2 * 2**30, free_memory=2**20)
    assert said(root, demo)["weights"][0].startswith(
        "warn  weights: 38 tensors in 1 file(s), 3.6 MiB, but the host has"
    )
    assert said(root, demo)["plan"][0].startswith("FAIL  plan: ")


def test_no_tokenizer_fails_and_one_to_convert_is_fine(cpu, demo):
    (demo / "tokenizer.json").unlink()
    assert said(cpu, demo)["tokenizer"][0].startswith("FAIL  tokenizer: ")
    (demo / "tokenizer.model").write_bytes(b"x")
    assert said(cpu, demo)["tokenizer"] == [
        "ok    tokenizer: no tokenizer.json; transformers makes one from tokenizer.model at each start"
    ]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"model": 3}', b"\x80", b"[" * 100_000])
def test_a_tokenizer_that_cannot_be_read_fails(cpu, demo, content):
    (demo / "tokenizer.json").write_bytes(content)
    (line,) = said(cpu, demo)["tokenizer"]
    assert line.startswith("FAIL  tokenizer: ")
    assert line.endswith("-> copy it again from the original model")


@pytest.mark.parametrize(
    "tokenizer",
    [
        {"model": {"type": "BPE", "vocab": {"a": 0, "b": 99_999_999}}},
        {"model": {"vocab": {}}, "added_tokens": [{"id": 99_999_999}, "x", {"id": "y"}]},
        {"model": {"type": "Unigram", "vocab": [["a", 0.0]] * 600_000}},
    ],
)
def test_tokens_beyond_the_vocabulary_of_the_model_warn(cpu, demo, tokenizer):
    (demo / "tokenizer.json").write_text(json.dumps(tokenizer))
    (line,) = said(cpu, demo)["tokenizer"]
    assert line.startswith("warn  tokenizer: it has token ")


def test_the_chat_template_is_taken_from_where_the_router_takes_it(cpu, demo, tmp_path):
    (demo / "tokenizer_config.json").write_text("{}")
    assert said(cpu, demo)["chat template"][0].startswith("warn  chat template: the model has none")
    given = machines.write(tmp_path, "given.json", '{"chat_template": "x"}')
    found = said(cpu, demo, tokenizer_config_path=str(given))
    assert found["chat template"] == [f"ok    chat template: from {given}"]
    (demo / "chat_template.jinja").write_text("x")
    assert said(cpu, demo)["chat template"] == [f"ok    chat template: from {demo}/chat_template.jinja"]
    (demo / "chat_template.json").write_text("{")
    assert said(cpu, demo)["chat template"][0].startswith("FAIL  chat template: ")


def test_a_compiled_model_fits_the_machine_it_was_compiled_for(inf2, demo):
    found = said(inf2, compiled(demo))
    assert found["compiled"] == [
        "ok    compiled: by optimum-neuron 0.4.5 and neuronx-cc 2.21.33363.0+82129205: batch size 2, "
        "sequence length 128, tensor parallel 2, bfloat16, sampling on the host"
    ]
    assert found["weights"][0].startswith("ok    weights: 1 graph(s) and 1 file(s)")
    assert found["plan"] == ["ok    plan: 1 replica(s) of 2 x 128 tokens in bfloat16 on neuron"]


def test_what_a_compiled_model_does_not_fit_is_said_all_at_once(inf2, demo):
    found = said(inf2, compiled(demo, optimum_neuron_version="0.3.0", tp_degree=8, target="trn2"))["compiled"]
    assert len(found) >= 3
    assert all(line.startswith("FAIL  compiled: ") for line in found)
    assert any("compiled by optimum-neuron 0.3.0" in line for line in found)
    assert any("8 NeuronCores" in line for line in found)


def test_weights_that_are_fetched_with_a_compiled_model_are_no_failure(inf2, demo):
    (demo / "model.safetensors").unlink()
    found = said(inf2, compiled(demo, checkpoint_id="me/weights"))
    assert found["weights"] == ["ok    weights: not in the directory; they are fetched from me/weights"]


def test_a_compiled_model_without_its_graphs_fails(inf2, demo):
    (compiled(demo) / "model.pt").unlink()
    assert said(inf2, demo)["weights"][0].startswith("FAIL  weights: ")


def test_a_compiled_model_is_served_with_its_shape_on_the_cpu(cpu, demo):
    found = said(cpu, compiled(demo))
    assert found["compiled"][0].startswith("ok    compiled: batch size 2, sequence length 128")
    assert found["plan"][-1].startswith("ok    plan: 1 replica(s) of 2 x 128 tokens in float32 on cpu")


def test_a_plain_model_on_neuron_depends_on_the_compile_cache(inf2, demo):
    found = said(inf2, demo)
    assert found["compiled"][0].startswith("warn  compiled: the model is not compiled")
    assert "plan" not in found


def test_a_family_without_neuron_graphs_fails_on_neuron(inf2, demo):
    (demo / "config.json").write_text(json.dumps({"model_type": "gpt2", "vocab_size": 10}))
    assert said(inf2, demo)["compiled"][0].startswith("FAIL  compiled: model type 'gpt2' left optimum-neuron")


def test_a_broken_neuron_config_fails(inf2, demo):
    (demo / "neuron_config.json").write_text("{")
    assert said(inf2, demo)["model"][0].startswith("FAIL  model: ")


def test_flags_that_do_not_go_together_fail_without_a_model(cpu):
    assert lines(model.flags, cpu) == ["ok    flags: they go together; the backend is cpu"]
    assert lines(model.flags, cpu, quantize="awq")[0].startswith("FAIL  flags: --quantize is awq")
    assert lines(model.flags, cpu, backend="neuron")[0].startswith("FAIL  flags: --backend is neuron")
    assert lines(model.flags, cpu, ngrok=True)[1].startswith("warn  flags: --ngrok has no effect")


def test_the_plan_refuses_what_the_launcher_refuses(cpu, demo):
    (line,) = said(cpu, demo, max_total_tokens=1_000_000)["plan"]
    assert line.startswith(
        "FAIL  plan: --max-total-tokens is 1000000 (flag), but the model has 2048 positions -> "
    )
    first, last = said(cpu, demo, max_concurrent_requests=2)["plan"]
    assert first.startswith("warn  plan: --max-concurrent-requests is 2")
    assert last.startswith("ok")
