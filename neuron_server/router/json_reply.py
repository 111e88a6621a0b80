"""JSON as TGI writes it."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson

#: One JSON value; its shape is the contract's, key by key.
Json = dict[str, Any]


def dump(value: Json | list[Json]) -> bytes:
    """Compact, UTF-8; what is not finite becomes null."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def f32(number: float | None) -> np.float32 | None:
    """Written as the shortest decimal that reads back in 32 bits, as TGI writes its log-probabilities."""
    return None if number is None else np.float32(number)
