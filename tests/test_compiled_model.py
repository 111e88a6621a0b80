from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from neuron_server.compiled_model import (
    CompiledFiles,
    StaticFacts,
    check_compiled_files,
    check_servable,
    lacks_weights,
    read_static,
    static_of,
)
from neuron_server.errors import ModelError
from neuron_server.json_object import JsonObject
from neuron_server.models import read_model

pytestmark = pytest.mark.group(20)

#: Written by optimum-neuron 0.4.5 itself.
NXD = {
    "_serialized_key": "NxDNeuronConfig", "batch_size": 4, "capacity_factor": None,
    "checkpoint_id": "org/model", "checkpoint_revision": "abc123", "continuous_batching": True,
    "ep_degree": 1, "fused_qkv": True, "glu_mlp": True, "local_ranks_size": 2, "max_batch_size": 4,
    "max_context_length": 4096, "max_topk": 256, "n_active_tokens": 4096,
    "neuronxcc_version": "2.21.33363.0+82129205", "on_device_sampling": True,
    "optimum_neuron_version": "0.4.5", "output_logits": False, "pp_degree": 1, "sequence_length": 4096,
    "speculation_length": 0, "start_rank_id": 0, "target": "trn1", "torch_dtype": "bfloat16", "tp_degree": 2,
}  # fmt: skip
#: What 0.3.0 adds, and writes otherwise.
NXD_0_3 = {
    **NXD, "async_mode": False, "attn_kernel_enabled": False, "cc_pipeline_tiling_factor": 2,
    "enable_bucketing": False, "flash_decoding_enabled": False, "is_chunked_prefill": False,
    "logical_nc_config": 1, "mlp_kernel_enabled": False, "mlp_kernel_fuse_residual_add": False,
    "num_cores_per_group": 1, "padding_side": "right", "qk_layernorm": False, "qkv_kernel_enabled": False,
    "rpl_reduce_dtype": "bfloat16", "sequence_parallel_enabled": False, "vocab_parallel": False,
    "target": None, "optimum_neuron_version": "0.3.0", "neuronxcc_version": "2.19.8089.0+8ab9f450",
}  # fmt: skip
HLO = {
    "_serialized_key": "HloNeuronConfig", "sequence_length": 2048, "batch_size": 8, "auto_cast_type": "bf16",
    "tp_degree": 2, "continuous_batching": True, "attention_layout": "BSH", "collectives_layout": "HSB",
    "group_query_attention": "shard-over-heads", "all_reduce_dtype": None, "fuse_qkv": True,
    "log_softmax_scores": False, "output_all_logits": False, "attn_output_transposed": False,
    "allow_flash_attention": True, "checkpoint_id": None, "checkpoint_revision": None,
    "optimum_neuron_version": "0.2.0", "neuronxcc_version": "2.17.194.0+d312836f",
}  # fmt: skip
#: From a public issue of optimum-neuron.
LEGACY = {
    "task": "text-generation", "batch_size": 4, "num_cores": 2, "sequence_length": 2048,
    "auto_cast_type": "fp16", "checkpoint_id": None, "checkpoint_revision": None,
    "compiler_type": "neuronx-cc", "compiler_version": "2.12.68.0+4480452af",
}  # fmt: skip
OLDEST = {
    "task": "text-generation", "batch_size": 16, "num_cores": 2, "auto_cast_type": "f32",
    "neuron_kwargs": {"n_positions": 1024}, "compiler_type": "neuronx-cc",
    "compiler_version": "2.9.0.40+07376825f",
}  # fmt: skip
GPT2 = {"model_type": "gpt2", "vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12}


def nxd(tmp_path: Path, **changes: Any) -> StaticFacts:
    (tmp_path / "neuron_config.json").write_text(json.dumps({**NXD, **changes}))
    found = read_static(tmp_path, JsonObject({}, tmp_path / "config.json"))
    assert found is not None
    return found


def legacy(section: dict[str, Any]) -> StaticFacts:
    found = read_static(Path("/no/such"), JsonObject({"neuron": section}, Path("config.json")))
    assert found is not None
    return found


# -- configurations, group 20 --------------------------------------------------------------------------------


def test_0_4_5_is_read_with_nothing_unknown(tmp_path):
    assert nxd(tmp_path) == StaticFacts(
        batch_size=4,
        sequence_length=4096,
        max_context_length=4096,
        generation="nxd",
        continuous_batching=True,
        cores=2,
        dtype="bfloat16",
        optimum_version="0.4.5",
        compiler_version="2.21.33363.0+82129205",
        target="trn1",
        on_device_sampling=True,
        checkpoint_id="org/model",
        checkpoint_revision="abc123",
        tensor_parallel=2,
    )


def test_what_no_backend_runs_is_an_obstacle_with_its_reason_and_its_value(tmp_path):
    assert nxd(tmp_path).obstacles == ()
    check_servable(tmp_path, nxd(tmp_path))
    found = nxd(tmp_path, speculation_length=4, enable_bucketing=True, batch_size=2)
    assert [words.split(",")[0] for words in found.obstacles] == [
        "speculation_length 4",
        "enable_bucketing True",
        "batch_size 2 and max_batch_size 4; only equal ones are served",
    ]
    with pytest.raises(ModelError, match=r"speculation_length 4, which is not served: .* Compile") as caught:
        check_servable(tmp_path, found)
    assert caught.value.rule == "unsupported_model"
    assert len(legacy(OLDEST).obstacles) == 1


def test_the_keys_of_0_3_are_known_and_a_null_target_is_no_target(tmp_path):
    static = nxd(tmp_path, **NXD_0_3)
    assert (static.unknown, static.target, static.optimum_version) == ((), None, "0.3.0")


def test_the_hlo_backend_of_0_2_is_told_from_nxd():
    static = static_of(HLO, "x")
    assert (static.hlo, static.unknown, static.generation) == (True, (), "nxd")
    assert (static.dtype, static.tensor_parallel, static.batch_size) == ("bfloat16", 2, 8)
    assert not static_of(NXD, "x").hlo


def test_the_chunks_of_the_version_after_0_4_5_are_read(tmp_path):
    static = nxd(tmp_path, prefill_chunk_size=1024)
    assert (static.prefill_chunk, static.unknown) == (1024, ())
    assert nxd(tmp_path, prefill_chunk_size=0).prefill_chunk == 0
    assert nxd(tmp_path).prefill_chunk == 0


def test_a_configuration_with_images_is_told(tmp_path):
    changes = {"_serialized_key": "NxDVLMNeuronConfig", "max_num_images": 1, "image_size": 896}
    static = nxd(tmp_path, **changes, image_seq_len=256)
    assert (static.images, static.unknown) == (True, ())


def test_keys_of_the_future_are_tolerated_and_told(tmp_path):
    assert nxd(tmp_path, zeta=1, alpha={"x": []}).unknown == ("alpha", "zeta")
    assert legacy({**LEGACY, "new": 1}).unknown == ("new",)


def test_cores_are_the_product_of_all_degrees(tmp_path):
    static = nxd(tmp_path, tp_degree=8, pp_degree=2, ep_degree=3)
    assert (static.cores, static.tensor_parallel) == (48, 8)


def test_legacy_of_both_forms_is_read():
    static = legacy(LEGACY)
    assert (static.batch_size, static.sequence_length, static.max_context_length) == (4, 2048, 2048)
    assert (static.cores, static.tensor_parallel, static.dtype) == (2, 2, "float16")
    assert (static.compiler_version, static.optimum_version) == ("2.12.68.0+4480452af", None)
    oldest = legacy(OLDEST)
    assert (oldest.batch_size, oldest.sequence_length, oldest.dtype) == (16, 1024, "float32")
    assert (static.unknown, oldest.unknown) == ((), ())


@pytest.mark.parametrize(
    ("family", "batch_size", "inserts"),
    [
        *(("llama", 4, True), ("mistral", 2, True), ("llama", 1, False)),
        *(("gpt2", 4, False), ("opt", 4, False), ("bloom", 4, False), ("mixtral", 4, False)),
    ],
)
def test_legacy_inserts_by_family_and_with_more_than_one_slot(family, batch_size, inserts):
    section = {**LEGACY, "batch_size": batch_size}
    config = JsonObject({"model_type": family, "neuron": section}, Path("config.json"))
    found = read_static(Path("/no/such"), config)
    assert found is not None
    assert found.continuous_batching is inserts
    assert not legacy(OLDEST).continuous_batching


@pytest.mark.parametrize(
    ("word", "dtype"), [("f32", "float32"), ("f16", "float16"), ("bf16", "bfloat16"), ("fp32", "float32")]
)
def test_both_spellings_of_a_type_are_one(word, dtype):
    assert legacy({**LEGACY, "auto_cast_type": word}).dtype == dtype


def test_a_whole_directory_of_an_old_model_is_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**GPT2, "n_positions": 1024, "neuron": OLDEST}))
    found = read_model(tmp_path)
    assert found.static is not None
    assert (found.vocab_size, found.max_positions, found.static.sequence_length) == (50257, 1024, 1024)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("batch_size", 0),
        ("max_batch_size", "4"),
        ("sequence_length", -1),
        ("sequence_length", 4096.0),
        ("tp_degree", True),
        ("max_context_length", []),
        ("continuous_batching", "yes"),
        ("on_device_sampling", 1),
        ("max_topk", "x" * 10_000),
        ("prefill_chunk_size", -1),
    ],
)
def test_a_value_that_cannot_be_is_named(tmp_path, key, value):
    with pytest.raises(ModelError) as caught:
        nxd(tmp_path, **{key: value})
    assert caught.value.rule == "config_corrupt"
    assert f"neuron_config.json: {key} is " in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("content", [b"", b"\x80\x04", b"[]", b"{" * 100_000, b"\xff\xfe{}"])
def test_a_file_that_is_no_object_is_named(tmp_path, content):
    (tmp_path / "neuron_config.json").write_bytes(content)
    with pytest.raises(ModelError) as caught:
        read_static(tmp_path, JsonObject({}, tmp_path / "config.json"))
    assert caught.value.rule == "config_corrupt"
    assert "neuron_config.json" in str(caught.value)


def test_an_entry_of_a_cache_is_read_as_the_generation_it_is_of():
    assert static_of(NXD, "an entry").generation == "nxd"
    assert static_of(LEGACY, "an entry").generation == "legacy"
    with pytest.raises(ModelError, match="an entry lacks batch_size"):
        static_of({"sequence_length": 10}, "an entry")


def test_the_form_is_one_line_for_people():
    assert static_of(NXD, "x").form == (
        "batch size 4, sequence length 4096, tensor parallel 2, bfloat16, sampling on the device"
    )
    assert "prompts up to 100" in static_of({**NXD, "max_context_length": 100}, "x").form


# -- files ---------------------------------------------------------------------------------------------------


def safetensors(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))


def graph(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", b"x")


def checked(root: Path, **changes: Any) -> CompiledFiles:
    return check_compiled_files(root, static_of({**NXD, **changes}, "x"))


def refused(root: Path, values: dict[str, Any]) -> tuple[str, str]:
    with pytest.raises(ModelError) as caught:
        check_compiled_files(root, static_of(values, "x"))
    return caught.value.rule, str(caught.value)


def test_a_whole_model_with_a_file_of_weights_for_each_core(tmp_path):
    graph(tmp_path / "model.pt")
    for rank in range(2):
        safetensors(tmp_path / f"checkpoint/weights/tp{rank}_sharded_checkpoint.safetensors")
    files = checked(tmp_path)
    assert ([f.name for f in files.graphs], len(files.weights)) == (["model.pt"], 2)
    assert files.weight_bytes == sum(f.stat().st_size for f in files.weights)
    (tmp_path / "checkpoint/weights/tp1_sharded_checkpoint.safetensors").unlink()
    rule, text = refused(tmp_path, NXD)
    assert rule == "weights_missing"
    assert "tp1_sharded_checkpoint.safetensors" in text
    assert "2 cores" in text


def test_a_graph_for_each_bundle_is_a_model_too(tmp_path):
    graph(tmp_path / "model_text.pt")
    safetensors(tmp_path / "model.safetensors")
    assert [f.name for f in checked(tmp_path).graphs] == ["model_text.pt"]


def test_plain_weights_count_beside_the_graphs_and_in_the_checkpoint(tmp_path):
    graph(tmp_path / "model.pt")
    safetensors(tmp_path / "checkpoint/model.safetensors")
    assert not lacks_weights(tmp_path)
    assert [f.name for f in checked(tmp_path).weights] == ["model.safetensors"]


def test_a_model_without_graphs_is_told_what_is_missing(tmp_path):
    safetensors(tmp_path / "model.safetensors")
    rule, text = refused(tmp_path, NXD)
    assert rule == "weights_missing"
    assert "model.pt" in text


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"\x00" * 100])
def test_a_damaged_graph_is_named(tmp_path, content):
    (tmp_path / "model.pt").write_bytes(content)
    rule, text = refused(tmp_path, NXD)
    assert rule == "weights_corrupt"
    assert "model.pt" in text


def test_a_clone_without_git_lfs_is_told_to_pull(tmp_path):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
    (tmp_path / "model.pt").write_bytes(pointer)
    assert "git lfs pull" in refused(tmp_path, NXD)[1]
    (tmp_path / "compiled").mkdir()
    (tmp_path / "compiled/a.neff").write_bytes(pointer)
    assert "git lfs pull" in refused(tmp_path, LEGACY)[1]


def test_weights_that_lie_elsewhere_are_asked_for_by_name(tmp_path):
    graph(tmp_path / "model.pt")
    assert lacks_weights(tmp_path)
    rule, text = refused(tmp_path, NXD)
    assert rule == "weights_missing"
    assert "text-generation-server download-weights org/model --revision abc123" in text
    rule, text = refused(tmp_path, {**NXD, "checkpoint_id": None, "checkpoint_revision": None})
    assert rule == "weights_missing"
    assert "checkpoint_id" in text


def test_a_legacy_model_needs_its_neffs_and_weights(tmp_path):
    rule, text = refused(tmp_path, LEGACY)
    assert (rule, "compiled/" in text, "missing" in text) == ("weights_missing", True, True)
    (tmp_path / "compiled").mkdir()
    assert "is empty" in refused(tmp_path, LEGACY)[1]
    (tmp_path / "compiled/a.neff").write_bytes(b"")
    assert refused(tmp_path, LEGACY)[0] == "weights_corrupt"
    (tmp_path / "compiled/a.neff").write_bytes(b"neff")
    assert refused(tmp_path, LEGACY)[0] == "weights_missing"
    (tmp_path / "checkpoint").mkdir()
    assert refused(tmp_path, LEGACY)[0] == "weights_missing"
    (tmp_path / "checkpoint/pytorch_model.bin").mkdir()
    (tmp_path / "checkpoint/pytorch_model.bin/p0").write_bytes(b"transformers-neuronx's own format")
    assert check_compiled_files(tmp_path, legacy(LEGACY)).weight_bytes > 0
    safetensors(tmp_path / "checkpoint/model.safetensors")
    assert [f.name for f in check_compiled_files(tmp_path, legacy(LEGACY)).weights] == ["model.safetensors"]
