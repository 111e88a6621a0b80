from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from neuron_server.errors import ModelError
from neuron_server.models import (
    EXACT_FAMILIES,
    REFUSED_FAMILIES,
    ModelFacts,
    check_supported,
    read_eos_ids,
    read_model,
)
from neuron_server.shape import StaticShape

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128256,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "torch_dtype": "bfloat16",
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "a_key_of_the_future": {"x": 1},
}
NXD = {
    "_serialized_key": "NxDNeuronConfig", "batch_size": 4, "max_batch_size": 4, "continuous_batching": True,
    "max_context_length": 2048, "sequence_length": 4096, "tp_degree": 2, "torch_dtype": "bfloat16",
    "optimum_neuron_version": "0.4.5", "neuronxcc_version": "2.21.33363.0+82129205", "new_key": None,
}  # fmt: skip
LEGACY = {
    "task": "text-generation", "batch_size": 4, "num_cores": 2, "sequence_length": 2048,
    "auto_cast_type": "fp16", "compiler_type": "neuronx-cc", "compiler_version": "2.12.68.0+4480452af",
}  # fmt: skip


def write(path: Path, config: Any, **others: Any) -> Path:
    for name, value in {"config": config, **others}.items():
        text = value if isinstance(value, str) else json.dumps(value)
        (path / f"{name}.json").write_text(text)
    return path


def refused(path: str | Path) -> ModelError:
    with pytest.raises(ModelError) as caught:
        read_model(path)
    return caught.value


def facts(tmp_path: Path, **config: Any) -> ModelFacts:
    return read_model(write(tmp_path, {**LLAMA, **config}))


def test_a_llama_is_read(tmp_path: Path) -> None:
    assert facts(tmp_path) == ModelFacts(
        model_type="llama",
        architecture="LlamaForCausalLM",
        max_positions=131072,
        num_layers=32,
        kv_heads=8,
        head_dim=128,
        vocab_size=128256,
        dtype="bfloat16",
        eos_token_ids=frozenset({128001, 128008, 128009}),
        heads=32,
    )


def test_the_old_names_of_gpt2_are_read(tmp_path: Path) -> None:
    old = {"model_type": "gpt2", "vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12}
    found = read_model(write(tmp_path, {**old, "n_positions": 1024, "n_ctx": 1024, "eos_token_id": 50256}))
    assert (found.num_layers, found.kv_heads, found.head_dim) == (12, 12, 64)
    assert (found.max_positions, found.eos_token_ids, found.dtype) == (1024, {50256}, None)


def test_the_generation_config_decides_what_ends_a_text(tmp_path: Path) -> None:
    assert read_eos_ids(write(tmp_path, LLAMA)) == {128001, 128008, 128009}
    assert read_eos_ids(write(tmp_path, LLAMA, generation_config={})) == {128001, 128008, 128009}
    assert read_eos_ids(write(tmp_path, LLAMA, generation_config={"eos_token_id": [7, 8, 7]})) == {7, 8}
    assert read_eos_ids(write(tmp_path, {**LLAMA, "eos_token_id": 50256}, generation_config={})) == {50256}


def test_without_any_end_there_is_none(tmp_path: Path) -> None:
    assert read_eos_ids(tmp_path) == frozenset()
    for none in (None, -1, []):  # -1 is how some configs write "none"; as a token id it fits no wire
        assert read_eos_ids(write(tmp_path, {**LLAMA, "eos_token_id": none})) == frozenset()


def test_an_explicit_head_size_wins(tmp_path: Path) -> None:
    assert facts(tmp_path, head_dim=64).head_dim == 64


@pytest.mark.parametrize(
    ("config", "heads"),
    [
        ({"multi_query": True, "new_decoder_architecture": False}, 1),
        ({"multi_query": False, "new_decoder_architecture": False}, 32),
        ({"multi_query": True, "new_decoder_architecture": True, "num_kv_heads": 8}, 32),
    ],
)
def test_falcon_caches_one_head_or_all(tmp_path: Path, config: Any, heads: int) -> None:
    assert facts(tmp_path, model_type="falcon", **config).kv_heads == heads


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "bloom", "seq_length": 2048},
        {"model_type": "falcon", "alibi": True},
        {"model_type": "mpt"},
    ],
)
def test_alibi_has_no_longest_text(tmp_path: Path, config: Any) -> None:
    assert facts(tmp_path, **config).max_positions is None


@pytest.mark.parametrize(
    ("scaling", "longest"),
    [
        (None, 4096),
        ({"type": "linear", "factor": 2.0}, 8192),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}, 16384),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 1024}, 4096),
        ({"rope_type": "dynamic", "factor": 2.0}, 4096),
        ({"rope_type": "longrope", "original_max_position_embeddings": 1024}, 1024),
    ],
)
def test_rope_scaling_counts_where_it_leaves_other_rows_alone(
    tmp_path: Path, scaling: Any, longest: int
) -> None:
    found = facts(tmp_path, max_position_embeddings=4096, rope_scaling=scaling)
    assert found.max_positions == longest


def test_a_scaling_that_no_model_has_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, {**LLAMA, "rope_scaling": {"type": "linear", "factor": float("inf")}})
    assert refused(path).rule == "config_corrupt"


@pytest.mark.parametrize(
    ("family", "why"),
    [("llama4", "takes images or sound"), ("gemma3", "has a text_config beside others")],
)
def test_a_model_of_several_parts_is_unsupported_not_damaged(tmp_path: Path, family: str, why: str) -> None:
    error = refused(write(tmp_path, {"model_type": family, "text_config": {"hidden_size": 64}}))
    assert error.rule == "unsupported_model"
    assert f"model type {family!r} {why}" in str(error)


def test_a_directory_that_is_closed_to_us_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", closed)  # root, as tests may be, is refused nothing
    error = refused(write(tmp_path, LLAMA))
    assert error.rule == "model_missing"
    assert str(error).endswith("cannot be looked into: Permission denied")


def test_longrope_takes_the_original_length_from_the_top_level_too(tmp_path: Path) -> None:
    found = facts(
        tmp_path,
        model_type="phi3",
        max_position_embeddings=131072,
        original_max_position_embeddings=4096,
        rope_scaling={"type": "longrope"},
    )
    assert found.max_positions == 4096


def test_the_cache_size_is_known_or_absent(tmp_path: Path) -> None:
    shape = StaticShape(4, 1024)
    assert facts(tmp_path).cache_bytes(shape, 2) == 2 * 32 * 4 * 8 * 1024 * 128 * 2
    bare = read_model(write(tmp_path, {"model_type": "new", "vocab_size": 10}))
    assert bare.cache_bytes(shape, 2) is None
    assert (bare.num_layers, bare.kv_heads, bare.head_dim, bare.max_positions) == (None, None, None, None)


# -- compiled models -----------------------------------------------------------------------------------------


def test_a_plain_model_fixes_no_shape(tmp_path: Path) -> None:
    assert facts(tmp_path).static is None


@pytest.mark.group(20)
def test_a_neuron_config_fixes_the_shape(tmp_path: Path) -> None:
    static = read_model(write(tmp_path, LLAMA, neuron_config=NXD)).static
    assert static is not None
    assert (static.batch_size, static.sequence_length, static.max_context_length) == (4, 4096, 2048)
    assert (static.generation, static.continuous_batching, static.cores) == ("nxd", True, 2)
    assert (static.dtype, static.optimum_version) == ("bfloat16", "0.4.5")


@pytest.mark.group(20)
def test_a_neuron_config_may_leave_out_what_has_a_default(tmp_path: Path) -> None:
    short = {"batch_size": 1, "sequence_length": 4096}
    static = read_model(write(tmp_path, LLAMA, neuron_config=short)).static
    assert static is not None
    assert (static.max_context_length, static.continuous_batching, static.cores) == (4096, False, 1)


@pytest.mark.group(20)
def test_a_legacy_section_fixes_the_shape(tmp_path: Path) -> None:
    static = facts(tmp_path, neuron=LEGACY).static
    assert static is not None
    assert (static.batch_size, static.sequence_length, static.max_context_length) == (4, 2048, 2048)
    assert (static.generation, static.cores, static.dtype) == ("legacy", 2, "float16")


@pytest.mark.group(20)
def test_the_oldest_legacy_section_is_read_too(tmp_path: Path) -> None:
    oldest = {
        "task": "text-generation", "batch_size": 1, "num_cores": 2, "auto_cast_type": "f32",
        "neuron_kwargs": {"n_positions": 1024},
    }  # fmt: skip
    static = facts(tmp_path, neuron=oldest).static
    assert static is not None
    assert (static.batch_size, static.sequence_length, static.dtype) == (1, 1024, "float32")


@pytest.mark.parametrize("key", ["batch_size", "sequence_length"])
@pytest.mark.group(20)
def test_a_compiled_model_without_its_shape_is_corrupt(tmp_path: Path, key: str) -> None:
    without = {k: v for k, v in NXD.items() if key not in k}
    error = refused(write(tmp_path, LLAMA, neuron_config=without))
    assert error.rule == "config_corrupt"
    (tmp_path / "neuron_config.json").unlink()
    without = {k: v for k, v in LEGACY.items() if k != key}
    error = refused(write(tmp_path, {**LLAMA, "neuron": without}))
    assert error.rule == "config_corrupt"
    assert key in str(error)


# -- what is not there, or makes no sense --------------------------------------------------------------------


def test_missing_things_are_named(tmp_path: Path) -> None:
    error = refused(tmp_path / "nothing")
    assert error.rule == "model_missing"
    assert "does not exist" in str(error)
    (tmp_path / "file").touch()
    assert "is not a directory" in str(refused(tmp_path / "file"))
    error = refused(tmp_path)
    assert error.rule == "model_missing"
    assert "config.json" in str(error)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "1", "\x00", "[" * 100_000])
def test_a_config_that_is_no_object_is_corrupt(tmp_path: Path, text: str) -> None:
    error = refused(write(tmp_path, text))
    assert error.rule == "config_corrupt"
    assert "config.json" in str(error)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vocab_size", None),
        ("vocab_size", "big"),
        ("vocab_size", 0),
        ("vocab_size", -1),
        ("vocab_size", True),
        ("vocab_size", 1.5),
        ("num_hidden_layers", [2]),
        ("max_position_embeddings", "long"),
        ("eos_token_id", "</s>"),
        ("eos_token_id", [1, "2"]),
        ("is_encoder_decoder", "no"),
    ],
)
def test_a_value_that_cannot_be_is_named(tmp_path: Path, key: str, value: Any) -> None:
    error = refused(write(tmp_path, {**LLAMA, key: value}))
    assert error.rule == "config_corrupt"
    assert key in str(error)


def test_a_broken_generation_config_is_named(tmp_path: Path) -> None:
    assert "generation_config.json" in str(refused(write(tmp_path, LLAMA, generation_config="{")))


# -- what is supported ---------------------------------------------------------------------------------------


def why_not(found: ModelFacts, **options: bool) -> str:
    with pytest.raises(ModelError) as caught:
        check_supported(found, **options)
    assert caught.value.rule == "unsupported_model"
    return str(caught.value)


@pytest.mark.parametrize("family", EXACT_FAMILIES)
def test_exact_families_are_supported(tmp_path: Path, family: str) -> None:
    found = facts(tmp_path, model_type=family)
    check_supported(found)
    assert found.exact


def test_an_unlisted_family_is_left_to_the_self_check(tmp_path: Path) -> None:
    found = facts(tmp_path, model_type="stablelm", architectures=["StableLmForCausalLM"])
    check_supported(found)
    assert not found.exact


@pytest.mark.parametrize("family", ["t5", "mamba", "bert", "llava", "rwkv", "xlnet", "gpt_neo", "jamba"])
def test_refused_families_are_named_with_a_reason(tmp_path: Path, family: str) -> None:
    message = why_not(facts(tmp_path, model_type=family))
    assert f"model type '{family}' {REFUSED_FAMILIES[family]}" == message


def test_other_heads_and_shapes_of_model_are_refused(tmp_path: Path) -> None:
    assert "encoder-decoder" in why_not(facts(tmp_path, model_type="new", is_encoder_decoder=True))
    message = why_not(facts(tmp_path, architectures=["LlamaForSequenceClassification"]))
    assert "LlamaForSequenceClassification" in message
    assert "gptq" in why_not(facts(tmp_path, quantization_config={"quant_method": "gptq"}))
    assert "unknown method" in why_not(facts(tmp_path, quantization_config={"bits": 4}))


def test_a_model_without_a_type_needs_its_own_code(tmp_path: Path) -> None:
    found = facts(tmp_path, model_type=None)
    assert "model_type" in why_not(found)
    check_supported(found, trust_remote_code=True)
    assert why_not(facts(tmp_path, model_type="t5"), trust_remote_code=True)


def test_no_family_is_both_promised_and_refused() -> None:
    assert not set(EXACT_FAMILIES) & set(REFUSED_FAMILIES)
