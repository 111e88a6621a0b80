"""How large a model's weights are: from its files, their index, or the shapes in its configuration."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from launcher.memory_account import ITEMSIZE
from launcher.planner.dimensions import ConfigNumbers, Dimensions
from launcher.planner.parameter_count import parameter_count
from neuron_server.errors import ModelError
from neuron_server.models import ModelFacts, check_weights
from neuron_server.weights import INDEX

#: Files hold more than parameters (buffers, a header), so bytes per parameter are not exactly 2 or 4.
_NEAR = 0.15
_MOST_BYTES = 10**15


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """``parameters`` of the model and where that number comes from; ``notes`` say what looked odd."""

    parameters: int
    source: str
    notes: tuple[str, ...] = ()


def stored_weights(root: Path, config: ConfigNumbers, sizes: Dimensions, facts: ModelFacts) -> StoredWeights:
    """The number of parameters, by the best evidence there is in the directory.

    Raises ``ModelError`` (rule ``weights_missing``) when there are neither weights, nor an index that says
    their size, nor a formula for the family.
    """
    formula = parameter_count(config, sizes)
    found, notes = (None, ()) if facts.static else _bytes_of_files(root)
    if found is None:
        if formula is None:
            raise ModelError(
                f"{root} holds no weights, no {INDEX} that says their size, and the parameters of model type "
                f"{sizes.model_type!r} cannot be counted from its config.json",
                rule="weights_missing",
            )
        return StoredWeights(formula, "counted from the shapes in config.json", notes)
    total, source = found
    itemsize = _itemsize(total, formula, facts.dtype)
    if itemsize is None:
        notes += ("config.json does not say the type of the weights: taken for 16 bit",)
        itemsize = 2
    if formula is not None and abs(total / itemsize / formula - 1) > _NEAR:
        notes += (
            f"the {source} say {total / itemsize / 1e9:.2f} B parameters, the shapes in config.json "
            f"{formula / 1e9:.2f} B: one of them is not of this model",
        )
    return StoredWeights(total // itemsize, source, notes)


def _itemsize(total: int, formula: int | None, dtype: str | None) -> int | None:
    """Bytes of one stored parameter: what the size of the files says, else the type that the config names."""
    if formula:
        for itemsize in (2, 4):
            if abs(total / (formula * itemsize) - 1) <= _NEAR:
                return itemsize
    return ITEMSIZE.get(dtype or "")


def _bytes_of_files(root: Path) -> tuple[tuple[int, str] | None, tuple[str, ...]]:
    try:
        return (check_weights(root).total_bytes, "safetensors files"), ()
    except ModelError as error:
        notes = (f"the weights here are damaged: {error}",) if error.rule == "weights_corrupt" else ()
    total = _total_of_index(root / INDEX)
    return (None if total is None else (total, f"sizes in {INDEX}")), notes


def _total_of_index(path: Path) -> int | None:
    """``metadata.total_size`` of the index; ``None`` when it is not there or cannot be."""
    try:
        index = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    metadata = index.get("metadata") if isinstance(index, dict) else None
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    if isinstance(total, bool) or not isinstance(total, (int, float)) or not 0 < total < _MOST_BYTES:
        return None
    return int(total)
