"""The NxD generation as subjects of the contract tests: the product's own ``load``, on upstream's own code.

Only what AWS ships is stood in for. It is optimum-neuron's host code and graph source, executed on CPU; it
says nothing about the compiler, the runtime or the arithmetic of a device.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from weakref import WeakKeyDictionary

import numpy as np
import torch
from contract.subject import GraphCall, Subject, Wanted
from hosts.nxd import tiny_model, upstream
from hosts.nxd.model_builder import CompiledModel

from neuron_server.backend import Backend, DeviceSampling
from neuron_server.backends import neuron_load
from neuron_server.backends.neuron import NeuronBackend
from neuron_server.backends.neuron_interface import missing_in_model, missing_names
from neuron_server.config import GeneratorConfig
from neuron_server.shape import StaticShape

_NO_CHUNKS = "chunked prefill exists only after optimum-neuron 0.4.5"

_compiled: WeakKeyDictionary[Backend, CompiledModel] = WeakKeyDictionary()


def make(wanted: Wanted) -> NeuronBackend:
    """Write a compiled model's directory and load it as the generator does."""
    with TemporaryDirectory() as name, upstream.fake_device() as loaded:
        tiny_model.write_model(Path(name), wanted)
        neuron_load._loaded.clear()  # a process of a user's holds one model; a test's holds many
        backend = NeuronBackend.load(
            GeneratorConfig(
                model_path=name,
                uds_path="",
                batch_size=wanted.shape.batch_size,
                max_length=wanted.shape.max_length,
                max_prompt_tokens=min(wanted.max_prompt_tokens, wanted.shape.max_length - 1),
                backend="neuron",
            )
        )
    _compiled[backend] = loaded[-1]
    return backend


def calls(backend: Backend) -> list[GraphCall]:
    """The calls of the compiled callable since the last time."""
    log = _compiled[backend].calls
    drained = list(log)
    log.clear()
    return drained


def draw(logits: np.ndarray, rows: Sequence[DeviceSampling]) -> np.ndarray:
    """Upstream's sampler, as it stands at the end of a graph: logits (n, V) -> tokens (n,)."""
    sampler = upstream.new_sampler(tiny_model.neuron_config(Wanted(StaticShape(4, 8), 4, output="tokens")))
    parameters = [[row.top_k, row.top_p, row.temperature] for row in rows]
    torch.manual_seed(1)
    tokens: np.ndarray = sampler(torch.tensor(logits), torch.tensor(parameters), torch.tensor([0])).numpy()
    return tokens


def drift() -> Sequence[str]:
    """What the product uses of optimum-neuron and the installed release lacks."""
    upstream.stand_in()
    from optimum.neuron import NeuronModelForCausalLM

    in_model = missing_in_model(upstream.model_class(), upstream.config_class())
    return [*missing_names(NeuronModelForCausalLM), *in_model]


def recorded_placeholders(version: str) -> set[str]:
    """The names that upstream imports of AWS's packages and the stand-ins leave empty, as written down."""
    return set((Path(__file__).parent / f"placeholders-{version}.txt").read_text().split())


def placeholders() -> tuple[Collection[str], Collection[str]]:
    """Those of a fresh process, and those recorded for the installed version."""
    program = [sys.executable, "-m", "hosts.nxd.placeholders"]
    paths = os.pathsep.join(filter(None, sys.path))
    environment = {**os.environ, "PYTHONPATH": paths}  # the tests' path is pytest's, not the interpreter's
    output = subprocess.run(program, check=True, capture_output=True, text=True, env=environment).stdout
    return set(output.split()), recorded_placeholders(upstream.installed())


def _subject(version: str) -> Subject:
    return Subject(
        name=f"nxd-{version}",
        modes=("insert", "rebuild"),
        outputs=("logits", "tokens"),
        make=make,
        alone=tiny_model.alone,
        calls=calls,
        draw=draw,
        not_applicable={10: _NO_CHUNKS},
        drift=drift,
        placeholders=placeholders,
        written_config=tiny_model.written_config,
    )


SUBJECTS: Mapping[str, Subject] = {f"nxd-{version}": _subject(version) for version in upstream.VERSIONS}
