"""Models that exist only as facts, plans for them, and a look at processes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from launcher.device.cores import CoreRange
from launcher.device.inventory import Inventory
from launcher.host import Host
from launcher.parameters import Parameters, Source, Value
from launcher.plan import LaunchPlan, Model, plan
from neuron_server.models import ModelFacts, StaticFacts


def facts(
    *, positions: int | None = 4096, static: StaticFacts | None = None, model_type: str = "gpt2"
) -> ModelFacts:
    """A small model of 2 layers, 2 heads of 8: 128 bytes of float32 cache per layer and token."""
    return ModelFacts(
        model_type=model_type,
        architecture="GPT2LMHeadModel",
        max_positions=positions,
        num_layers=2,
        kv_heads=2,
        head_dim=8,
        vocab_size=100,
        dtype="float32",
        static=static,
    )


def compiled(
    batch_size: int = 4,
    length: int = 1024,
    context: int | None = None,
    *,
    generation: Literal["nxd", "legacy"] = "nxd",
    continuous_batching: bool = True,
    cores: int | None = None,
    dtype: str | None = None,
) -> ModelFacts:
    """The facts of a model that carries a static shape."""
    return facts(
        static=StaticFacts(
            batch_size=batch_size,
            sequence_length=length,
            max_context_length=context or length,
            generation=generation,
            continuous_batching=continuous_batching,
            cores=cores,
            dtype=dtype,
        )
    )


def machine(
    devices: int = 12, cores: CoreRange | None = None, *, instance_type: str = "inf2.48xlarge"
) -> Host:
    """A host with so many chips, whose cores may have been narrowed to ``cores``."""
    usable = cores or (CoreRange(0, 2 * devices) if devices else None)
    return Host(inventory=Inventory(devices=devices, instance_type=instance_type, cores=usable))


def planned(
    model: ModelFacts | None = None,
    *,
    host: Host | None = None,
    source: Source = Source.FLAG,
    directory: str = "/tmp/neuronx-tgi-test",
    weight_bytes: int | None = 1000,
    **values: Value,
) -> LaunchPlan:
    """A plan for these flags."""
    described = Model("org/model", "/models/model", model or facts(), weight_bytes=weight_bytes)
    parameters = Parameters.of(source=source, **values)
    return plan(parameters, described, host or Host(), private_directory=directory)


def runs(pid: int) -> bool:
    """Whether the process is more than a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False
