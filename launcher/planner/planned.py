"""The model that is planned for: what can be known of it without weights."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from launcher.planner.dimensions import ConfigNumbers, Dimensions, read_dimensions
from launcher.planner.families import Mode
from launcher.planner.stored import stored_weights
from neuron_server.compiled_model import stores_cut_weights
from neuron_server.models import ModelFacts


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """``name`` and ``revision`` are what the user called it; ``source``: where ``parameters`` is from.

    ``mode`` is fixed for a compiled model and otherwise follows from the configuration. ``stores_weights``:
    the compiled model has, or will have, its weights beside the graphs as the device takes them; an export
    from a hub id only names the checkpoint.
    """

    name: str
    facts: ModelFacts
    sizes: Dimensions
    parameters: int
    source: str
    stores_weights: bool
    notes: tuple[str, ...] = ()
    revision: str | None = None

    @property
    def mode(self) -> Mode | None:
        """What a compiled model was compiled as."""
        static = self.facts.static
        return None if static is None else Mode(static.continuous_batching, static.on_device_sampling)


def read_planned(name: str, path: str | Path, facts: ModelFacts, revision: str | None = None) -> PlannedModel:
    """What the directory ``path`` says beyond its ``facts``.

    Raises ``ModelError`` (see ``read_dimensions`` and ``stored_weights``).
    """
    config = ConfigNumbers.load(path)
    sizes = read_dimensions(config, facts)
    stored = stored_weights(Path(path), config, sizes, facts)
    static = facts.static
    cut = os.path.isdir(name) if static is None else stores_cut_weights(Path(path), static)
    return PlannedModel(name, facts, sizes, stored.parameters, stored.source, cut, stored.notes, revision)
