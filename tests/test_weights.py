from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from neuron_server.errors import ModelError
from neuron_server.weights import check_weights

TENSORS = {"a": np.zeros((3, 4), np.float32), "b": np.ones(5, np.int64), "c": np.zeros((0, 2), np.float16)}


@pytest.fixture
def single(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    save_file({"a": TENSORS["a"]}, tmp_path / "one.safetensors")
    save_file({"b": TENSORS["b"], "c": TENSORS["c"]}, tmp_path / "two.safetensors")
    write_index(tmp_path, {"a": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors"})
    return tmp_path


def write_index(path: Path, weight_map: Any) -> None:
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def refused(path: Path) -> ModelError:
    with pytest.raises(ModelError) as caught:
        check_weights(path)
    return caught.value


def write_raw(path: Path, header: Any, data: bytes = b"") -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)


def test_a_whole_file_is_counted(single: Path) -> None:
    found = check_weights(single)
    assert [f.name for f in found.files] == ["model.safetensors"]
    assert found.tensors == 3
    assert found.total_bytes == (single / "model.safetensors").stat().st_size


def test_whole_shards_are_counted(sharded: Path) -> None:
    found = check_weights(str(sharded))
    assert [f.name for f in found.files] == ["one.safetensors", "two.safetensors"]
    assert found.tensors == 3


@pytest.mark.parametrize("keep", [0, 7, 8, 20, -1])
def test_a_file_cut_anywhere_is_corrupt_and_named(single: Path, keep: int) -> None:
    file = single / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    error = refused(single)
    assert error.rule == "weights_corrupt"
    assert "model.safetensors" in str(error)


def test_a_cut_shard_is_corrupt_and_named(sharded: Path) -> None:
    file = sharded / "two.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    error = refused(sharded)
    assert error.rule == "weights_corrupt"
    assert "two.safetensors is truncated" in str(error)


def test_trailing_bytes_are_corrupt(single: Path) -> None:
    file = single / "model.safetensors"
    file.write_bytes(file.read_bytes() + b"x")
    assert refused(single).rule == "weights_corrupt"


@pytest.mark.parametrize(
    "header",
    [
        b"not json",
        b"\xff\xfe",
        b"[]",
        {"a": 1},
        {"a": {"dtype": "F32", "shape": [1]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}},
        {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}},
        {"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}},
        {"a": {"dtype": "I8", "shape": [1], "data_offsets": [3, 4]}},
        {
            "a": {"dtype": "I8", "shape": [3], "data_offsets": [0, 3]},
            "b": {"dtype": "I8", "shape": [2], "data_offsets": [2, 4]},
        },
        b"[" * 100_000,
    ],
)
def test_a_header_that_makes_no_sense_is_corrupt(tmp_path: Path, header: Any) -> None:
    write_raw(tmp_path, header, bytes(4))
    assert refused(tmp_path).rule == "weights_corrupt"


def test_a_header_length_beyond_reason_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes((2**62).to_bytes(8, "little") + bytes(100))
    assert "not a safetensors file" in str(refused(tmp_path))


def test_types_and_keys_of_the_future_are_tolerated(tmp_path: Path) -> None:
    write_raw(
        tmp_path, {"a": {"dtype": "F4_NEW", "shape": [8], "data_offsets": [0, 4], "extra": 1}}, bytes(4)
    )
    assert check_weights(tmp_path).tensors == 1


def test_a_missing_shard_is_named(sharded: Path) -> None:
    (sharded / "one.safetensors").unlink()
    error = refused(sharded)
    assert error.rule == "weights_missing"
    assert "one.safetensors" in str(error)


def test_a_tensor_that_is_not_where_the_index_says_is_corrupt(sharded: Path) -> None:
    write_index(sharded, {"a": "two.safetensors"})
    error = refused(sharded)
    assert error.rule == "weights_corrupt"
    assert "'a'" in str(error)


@pytest.mark.parametrize("weight_map", [None, [], {}, {"a": 1}, {"a": "../one.safetensors"}])
def test_an_index_that_makes_no_sense_is_corrupt(sharded: Path, weight_map: Any) -> None:
    write_index(sharded, weight_map)
    assert refused(sharded).rule == "weights_corrupt"


def test_an_index_that_is_no_json_is_corrupt(sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").write_text("{")
    assert refused(sharded).rule == "weights_corrupt"


def test_pickles_alone_are_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    error = refused(tmp_path)
    assert error.rule == "weights_missing"
    assert "pytorch_model.bin" in str(error)
    assert "convert" in str(error)


def test_an_empty_directory_has_no_weights(tmp_path: Path) -> None:
    error = refused(tmp_path)
    assert error.rule == "weights_missing"
    assert "no weights" in str(error)
