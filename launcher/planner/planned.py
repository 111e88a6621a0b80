"""The model that is planned for: what can be known of it without weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from launcher.planner.dimensions import ConfigNumbers, Dimensions, read_dimensions
from launcher.planner.families import Mode
from launcher.planner.stored import stored_weights
from neuron_server.models import ModelFacts


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """``name`` is what the user called it. ``source``: where the number of parameters is from.

    ``mode`` is fixed for a compiled model and otherwise follows from the configuration.
    """

    name: str
    facts: ModelFacts
    sizes: Dimensions
    parameters: int
    source: str
    notes: tuple[str, ...] = ()

    @property
    def mode(self) -> Mode | None:
        """What a compiled model was compiled as."""
        static = self.facts.static
        return None if static is None else Mode(static.continuous_batching, static.on_device_sampling)


def read_planned(name: str, path: str | Path, facts: ModelFacts) -> PlannedModel:
    """What the directory ``path`` says beyond its ``facts``.

    Raises ``ModelError`` (see ``read_dimensions`` and ``stored_weights``).
    """
    config = ConfigNumbers.load(path)
    sizes = read_dimensions(config, facts)
    stored = stored_weights(Path(path), config, sizes, facts)
    return PlannedModel(name, facts, sizes, stored.parameters, stored.source, stored.notes)
