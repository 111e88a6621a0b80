from __future__ import annotations

import json
import struct

import pytest
from planner import plans

from launcher.planner.question import Settings
from neuron_server.errors import ModelError
from neuron_server.weights import INDEX, SINGLE

PARAMETERS = 8_030_261_248
SMALL = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 500, "max_position_embeddings": 4096,
}  # fmt: skip
SMALL_PARAMETERS = 138_048


def model(path):
    return plans.make_report(Settings(instances=("inf2.48xlarge",)), str(path)).question.model


def write_weights(path, elements, dtype="BF16", itemsize=2):
    header = {"w": {"dtype": dtype, "shape": [elements], "data_offsets": [0, elements * itemsize]}}
    text = json.dumps(header).encode()
    (path / SINGLE).write_bytes(struct.pack("<Q", len(text)) + text + bytes(elements * itemsize))


def write_index(path, content):
    (path / INDEX).write_text(content if isinstance(content, str) else json.dumps(content))


def test_without_any_file_the_shapes_are_counted(tmp_path):
    found = model(plans.directory(tmp_path, plans.LLAMA_8B))
    assert (found.parameters, found.notes) == (PARAMETERS, ())
    assert "shapes in config.json" in found.source


def test_the_index_of_absent_files_says_the_size(tmp_path):
    path = plans.directory(tmp_path, plans.LLAMA_8B)
    weight_map = {"w": "model-00001-of-00004.safetensors"}
    write_index(path, {"metadata": {"total_size": 16060522496}, "weight_map": weight_map})
    found = model(path)
    assert found.parameters == PARAMETERS
    assert INDEX in found.source


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{", "null", {"metadata": None}, {"metadata": {}}, {"metadata": {"total_size": "16"}},
     {"metadata": {"total_size": -1}}, {"metadata": {"total_size": True}},
     {"metadata": {"total_size": 10**40}},
     '{"metadata": {"total_size": NaN}}', '{"metadata": {"total_size": Infinity}}', "[" * 100_000],
)  # fmt: skip
def test_an_index_that_says_nothing_is_passed_over(content, tmp_path):
    path = plans.directory(tmp_path, plans.LLAMA_8B)
    write_index(path, content)
    assert model(path).parameters == PARAMETERS


@pytest.mark.parametrize(("dtype", "itemsize"), [("BF16", 2), ("F32", 4)])
def test_the_files_are_counted_in_the_type_they_have_whatever_the_config_says(dtype, itemsize, tmp_path):
    path = plans.directory(tmp_path, plans.LLAMA_8B, **SMALL)
    write_weights(path, SMALL_PARAMETERS, dtype, itemsize)
    found = model(path)
    assert found.parameters == pytest.approx(SMALL_PARAMETERS, rel=0.01)
    assert found.source == "safetensors files"


def test_damaged_weights_are_told_and_the_shapes_counted(tmp_path):
    path = plans.directory(tmp_path, plans.LLAMA_8B, **SMALL)
    write_weights(path, 1000)
    (path / SINGLE).write_bytes((path / SINGLE).read_bytes()[:-10])
    found = model(path)
    assert found.parameters == SMALL_PARAMETERS
    assert "truncated" in found.notes[0]


def test_weights_of_another_model_are_told(tmp_path):
    path = plans.directory(tmp_path, plans.LLAMA_8B, **SMALL)
    write_weights(path, 1_000_000)
    assert "one of them is not of this model" in model(path).notes[-1]


def test_a_family_without_a_formula_needs_an_index(tmp_path):
    path = plans.directory(tmp_path, plans.LLAMA_8B, "torch_dtype", model_type="llama4_text")
    with pytest.raises(ModelError) as caught:
        model(path)
    assert caught.value.rule == "weights_missing"
    write_index(path, {"metadata": {"total_size": 2000}})
    found = model(path)
    assert found.parameters == 1000
    assert any("taken for 16 bit" in note for note in found.notes)
