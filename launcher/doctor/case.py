"""What the checks look at: flags, environment and machine, each read once and when it is needed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from launcher import host
from launcher.device import holders, inventory, stack
from launcher.doctor.finding import Status
from launcher.download import is_local
from launcher.parameters import Parameters
from neuron_server.errors import ModelError
from neuron_server.models import ModelFacts, read_model

_TRUE = {"1", "ON", "YES", "TRUE"}


@dataclass(frozen=True)
class Case:
    """``root``: of the machine. A model directory that a flag names is where it says, whatever the root."""

    parameters: Parameters
    environ: Mapping[str, str]
    root: Path = Path("/")

    @cached_property
    def inventory(self) -> inventory.Inventory:
        """The Neuron hardware."""
        return inventory.inspect(self.root, self.environ)

    @cached_property
    def stack(self) -> stack.Stack:
        """The Neuron software."""
        return stack.installed(self.root, self.environ)

    @cached_property
    def holders(self) -> holders.Holders:
        """Who has the devices open."""
        return holders.holders(self.root)

    @cached_property
    def host(self) -> host.Host:
        """Memory and processors."""
        return host.inspect(self.root, self.environ)

    @property
    def wants_neuron(self) -> bool:
        """Whether a Neuron backend was asked for by name."""
        return (self.parameters.text("backend") or "").startswith("neuron")

    @property
    def on_neuron(self) -> bool:
        """Whether NeuronCores would serve: they were asked for, or ``auto`` finds some."""
        return self.wants_neuron or (self.parameters.text("backend") == "auto" and self.inventory.devices > 0)

    @property
    def grave(self) -> Status:
        """What a fault of the Neuron side means: nothing much where the CPU serves."""
        return Status.FAIL if self.on_neuron else Status.WARN

    def switched_on(self, variable: str) -> bool:
        """A variable of the hub's libraries that means yes."""
        return self.environ.get(variable, "").upper() in _TRUE

    # -- where the model is ----------------------------------------------------------------------------------

    @property
    def hub_home(self) -> Path:
        """Where the hub's client keeps its files (``HF_HOME``)."""
        cache = self.environ.get("XDG_CACHE_HOME") or f"{self.environ.get('HOME') or '/root'}/.cache"
        return Path(self.environ.get("HF_HOME") or f"{cache}/huggingface")

    @property
    def hub_cache(self) -> Path:
        """Where models are downloaded to."""
        flag = self.parameters.text("huggingface_hub_cache")
        return Path(flag or self.environ.get("HF_HUB_CACHE") or self.hub_home / "hub")

    @cached_property
    def model_path(self) -> Path | None:
        """The model's directory: the one that was named, or that of a hub model which is in the cache.

        Raises ``ModelError`` for a path that leads nowhere.
        """
        model_id = self.parameters.text("model_id")
        if model_id is None:
            return None
        return Path(model_id) if is_local(model_id) else self._cached(model_id)

    @property
    def to_fetch(self) -> bool:
        """Whether the model is a hub's that is not here yet; a wrong path is another check's matter."""
        try:
            return self.parameters.text("model_id") is not None and self.model_path is None
        except ModelError:
            return False

    @cached_property
    def facts(self) -> ModelFacts | None:
        """What the model's files say; ``None`` when it is not here. Raises ``ModelError``."""
        return None if self.model_path is None else read_model(self.model_path)

    def _cached(self, model_id: str) -> Path | None:
        repository = self.below(self.hub_cache) / f"models--{model_id.replace('/', '--')}"
        revision = self.parameters.text("revision") or "main"
        try:
            commit = (repository / "refs" / revision).read_text().strip()
        except (OSError, ValueError):
            commit = revision
        snapshot = repository / "snapshots" / commit
        return snapshot if os.path.isfile(snapshot / "config.json") else None  # False too where it is closed

    def below(self, path: Path) -> Path:
        """``path`` of the machine that is looked at."""
        return path if self.root == Path("/") else self.root / path.relative_to(path.anchor)
