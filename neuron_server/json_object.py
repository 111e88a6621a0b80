"""JSON objects of a model's files, read so that each complaint names the file and the key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neuron_server.errors import ModelError

#: Spellings of a type -> the one used here. optimum-neuron 0.0.11 writes ``f16``, the later ones ``fp16``.
DTYPES: Mapping[str, str] = {
    **dict.fromkeys(("float32", "fp32", "f32", "float"), "float32"),
    **dict.fromkeys(("bfloat16", "bf16"), "bfloat16"),
    **dict.fromkeys(("float16", "fp16", "f16", "half"), "float16"),
}

#: A configuration file of a model takes kilobytes; vocabularies are other files.
_MOST_BYTES = 64 * 2**20


class JsonObject:
    """One JSON object and the file it came from.

    A value that cannot be raises ``ModelError`` with rule ``config_corrupt``; what is absent is ``None``.
    """

    def __init__(self, values: Mapping[str, Any], path: Path) -> None:  # Any: JSON
        self.values = values
        self.path = path

    @classmethod
    def load(cls, path: Path) -> JsonObject:
        """The object that the file holds."""
        try:
            with path.open("rb") as file:
                text = file.read(_MOST_BYTES + 1)
            if len(text) > _MOST_BYTES:
                raise ValueError(f"it has more than {_MOST_BYTES} bytes")
            values = json.loads(text)
        except (OSError, ValueError, RecursionError) as error:
            raise ModelError(f"{path} cannot be read as JSON: {error}", rule="config_corrupt") from error
        if not isinstance(values, dict):
            raise ModelError(f"{path} must hold a JSON object", rule="config_corrupt")
        return cls(values, path)

    def wrong(self, key: str, want: str) -> ModelError:
        """The complaint that ``key`` is not ``want``; a long value is cut."""
        shown = repr(self.values[key])
        shown = shown if len(shown) <= 100 else shown[:97] + "..."
        return ModelError(f"{self.path}: {key} is {shown}, but must be {want}", rule="config_corrupt")

    def integer(self, *keys: str, least: int = 1) -> int | None:
        """The first of ``keys`` that is set, as an integer of at least ``least``."""
        for key in keys:
            value = self.values.get(key)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise self.wrong(key, f"an integer of at least {least}")
            return value
        return None

    def required(self, *keys: str) -> int:
        """As ``integer``, for what must be there."""
        value = self.integer(*keys)
        if value is None:
            raise ModelError(f"{self.path} lacks {keys[0]}", rule="config_corrupt")
        return value

    def boolean(self, key: str, default: bool = False) -> bool:
        """``true`` or ``false``."""
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def text(self, *keys: str) -> str | None:
        """The first of ``keys`` that holds a text; anything else is passed over."""
        values = (self.values.get(key) for key in keys)
        return next((v for v in values if isinstance(v, str)), None)

    def dtype(self, *keys: str) -> str | None:
        """As ``text``, in our spelling of a type where it is one we know."""
        word = self.text(*keys)
        return None if word is None else DTYPES.get(word.removeprefix("torch."), word)

    def object(self, key: str) -> JsonObject | None:
        """The object under ``key``; anything else is passed over."""
        value = self.values.get(key)
        return JsonObject(value, self.path) if isinstance(value, dict) else None

    def ids(self, key: str) -> tuple[int, ...]:
        """A token id or a list of them; negative ones, which some write for "none", are left out."""
        value = self.values.get(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if any(isinstance(i, bool) or not isinstance(i, int) for i in ids):
            raise self.wrong(key, "a token id or a list of token ids")
        return tuple(i for i in ids if i >= 0)
