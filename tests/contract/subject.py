"""What the contract tests need to know of a backend: how to make one, and what it should compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from neuron_server.backend import Backend, OutputKind, PrefillMode
from neuron_server.shape import StaticShape


@dataclass(frozen=True)
class Wanted:
    """The backend a test asks for. ``max_prompt_tokens`` is C, the width of the prefill graph."""

    shape: StaticShape
    max_prompt_tokens: int
    prefill_mode: PrefillMode = "insert"
    output: OutputKind = "logits"


@dataclass(frozen=True)
class GraphCall:
    """One call of the compiled callable: the name of the graph, and name -> (shape, dtype) of its inputs."""

    graph: str
    inputs: Mapping[str, tuple[tuple[int, ...], str]]


@dataclass(frozen=True)
class Subject:
    """One column of the contract matrix.

    ``make`` loads a backend on one and the same tiny model (vocabulary 64, float32). ``alone`` is the oracle:
    logits (L, V) after each token of one text, by transformers' own forward without any cache. ``calls``
    drains the log of the compiled callable since the last time, where there is one. ``not_applicable`` says
    for a group of ``groups.GROUPS`` why it cannot run here.
    """

    name: str
    modes: Sequence[PrefillMode]
    outputs: Sequence[OutputKind]
    make: Callable[[Wanted], Backend]
    alone: Callable[[list[int]], np.ndarray]
    calls: Callable[[Backend], list[GraphCall]] | None = None
    not_applicable: Mapping[int, str] = field(default_factory=dict)
