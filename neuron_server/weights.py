"""Whether a model directory's safetensors files are whole, without loading them.

Only headers and file lengths are read (standard library; the format is eight bytes of header length, a JSON
header, then the data), so a truncated download is found, and named, before any process loads it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from neuron_server.errors import ModelError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

#: The safetensors library refuses larger headers too.
_MAX_HEADER_BYTES = 100_000_000
_LENGTH_BYTES = 8
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")
#: Bits per element.
_DTYPE_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
}


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """The files that make up a model, their tensors' number and their total size in bytes."""

    files: tuple[Path, ...]
    tensors: int
    total_bytes: int


def check_weights(path: str | Path) -> WeightFiles:
    """Check that ``path`` holds a complete set of readable safetensors files.

    Raises ``ModelError`` with rule ``weights_missing`` (none, only pickle files, or a file of the index is
    absent) or ``weights_corrupt`` (a header that cannot be read, a length that does not fit it, a tensor that
    the index names and the file lacks); the message names the file.
    """
    root = Path(path)
    if (root / SINGLE).is_file():
        headers = {SINGLE: _tensor_names(root / SINGLE)}
    elif (root / INDEX).is_file():
        headers = _check_index(root)
    else:
        raise ModelError(_what_is_there_instead(root), rule="weights_missing")
    files = tuple(root / name for name in headers)
    return WeightFiles(files, sum(map(len, headers.values())), sum(f.stat().st_size for f in files))


def check_file(path: Path) -> None:
    """Check one safetensors file; raises ``ModelError`` with rule ``weights_corrupt``."""
    _tensor_names(path)


def _what_is_there_instead(root: Path) -> str:
    pickles = sorted(f.name for pattern in _PICKLES for f in root.glob(pattern))
    if pickles:
        return (
            f"{root} holds {pickles[0]} but neither {SINGLE} nor {INDEX}; only safetensors are loaded,"
            " because a pickle can run code: convert the model with save_pretrained(safe_serialization=True)"
        )
    return f"{root} holds no weights, neither {SINGLE} nor {INDEX}: fetch or copy the model again, whole"


def _check_index(root: Path) -> dict[str, frozenset[str]]:
    path = root / INDEX
    try:
        index = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise _corrupt(path, f"cannot be read as JSON: {error}") from error
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise _corrupt(path, "lacks a weight_map")
    headers: dict[str, frozenset[str]] = {}
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or Path(name).name != name:
            raise _corrupt(path, f"maps {tensor!r} to {name!r}, which is not a plain file name")
        if name not in headers:
            if not (root / name).is_file():
                raise ModelError(f"{root} lacks {name}, which {INDEX} names", rule="weights_missing")
            headers[name] = _tensor_names(root / name)
        if tensor not in headers[name]:
            raise _corrupt(root / name, f"lacks the tensor {tensor!r} that {INDEX} expects in it")
    return headers


def _corrupt(path: Path, what: str) -> ModelError:
    return ModelError(f"{path} {what}", rule="weights_corrupt")


def _tensor_names(path: Path) -> frozenset[str]:
    """Names in the file's header, after checking that its tensors fill the rest of the file exactly."""
    header, data_bytes = _read_header(path)
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    spans = sorted(_span(path, name, entry) for name, entry in tensors.items())
    end = 0
    for start, stop, name in spans:
        if start != end:
            raise _corrupt(path, f"is corrupt: tensor {name!r} starts at byte {start}, not {end}")
        end = stop
    if end > data_bytes:
        raise _corrupt(path, f"is truncated: its tensors need {end} bytes and {data_bytes} are there")
    if end < data_bytes:
        raise _corrupt(path, f"is corrupt: {data_bytes - end} bytes follow its last tensor")
    return frozenset(tensors)


def _read_header(path: Path) -> tuple[dict[str, Any], int]:  # Any: JSON
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            prefix = file.read(_LENGTH_BYTES)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < _LENGTH_BYTES or length > _MAX_HEADER_BYTES:
                raise _corrupt(path, f"is not a safetensors file ({size} bytes, no valid header length)")
            if _LENGTH_BYTES + length > size:
                raise _corrupt(path, f"is truncated: its header needs {length} bytes, the file has {size}")
            text = file.read(length)
    except OSError as error:
        raise _corrupt(path, f"cannot be read: {error.strerror}") from error
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _corrupt(path, f"has an unreadable header: {error}") from error
    if not isinstance(header, dict):
        raise _corrupt(path, "has a header that is not a JSON object")
    return header, size - _LENGTH_BYTES - length


def _span(path: Path, name: str, entry: object) -> tuple[int, int, str]:
    """First and past-the-end byte of one tensor."""
    fields: Mapping[str, Any] = entry if isinstance(entry, dict) else {}  # Any: JSON
    shape, offsets = _naturals(fields.get("shape")), _naturals(fields.get("data_offsets"))
    if shape is None or offsets is None or len(offsets) != 2:
        raise _corrupt(path, f"has an unreadable header entry for tensor {name!r}")
    bits = _DTYPE_BITS.get(str(fields.get("dtype")))
    start, stop = offsets
    if stop < start or (bits is not None and (stop - start) * 8 != math.prod(shape) * bits):
        raise _corrupt(path, f"is corrupt: {stop - start} bytes cannot hold tensor {name!r} of shape {shape}")
    return start, stop, name


def _naturals(value: object) -> list[int] | None:
    is_list = isinstance(value, list) and all(type(v) is int and v >= 0 for v in value)
    return cast("list[int]", value) if is_list else None
