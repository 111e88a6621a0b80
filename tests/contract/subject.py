"""What the contract tests need to know of a backend: how to make one, and what it should compute."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from neuron_server.backend import Backend, DeviceSampling, OutputKind, PrefillMode
from neuron_server.shape import StaticShape


@dataclass(frozen=True)
class Wanted:
    """The backend a test asks for. ``max_prompt_tokens`` is C, the width of the prefill graph.

    Where ``output`` is ``tokens``, ``max_top_k`` is the most candidates that its device considers.
    """

    shape: StaticShape
    max_prompt_tokens: int
    prefill_mode: PrefillMode = "insert"
    output: OutputKind = "logits"
    max_top_k: int = 256


@dataclass(frozen=True)
class GraphCall:
    """One call of the compiled callable: the name of the graph, and name -> (shape, dtype) of its inputs.

    ``graph`` is ``prefill`` or ``decode``; ``dtype`` as torch spells it, without the prefix: ``int32``.
    ``slots``: the slots that the call names, where that can be told from its inputs.
    """

    graph: str
    inputs: Mapping[str, tuple[tuple[int, ...], str]]
    slots: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Subject:
    """One column of the contract matrix.

    ``make`` loads a backend on one and the same tiny model (vocabulary 64, float32). ``alone`` is the oracle:
    logits (L, V) after each token of one text, by transformers' own forward without any cache. ``calls``
    drains the log of the compiled callable since the last time, where there is one. ``not_applicable`` says
    for a group of ``groups.GROUPS`` why it cannot run here.

    ``column``: where its results count, if not under its own name. ``bitwise``: whether a row's logits keep
    every bit whatever its company (the shapes are static), or are only close. ``shared_column``: a static
    batch whose slots share one step counter, so that capacity ends for all at once.

    ``draw``: the sampler of a device that hands over tokens, alone: logits (n, V) and a row for each ->
    tokens (n,). ``drift``: one line for each attribute or keyword that our adapter uses and the installed
    upstream release lacks; nothing when all are there. ``placeholders``: names that the stand-ins fill in,
    and those recorded for the installed version. ``written_config``: the ``neuron_config.json`` that the
    installed release itself writes for these values.
    """

    name: str
    modes: Sequence[PrefillMode]
    outputs: Sequence[OutputKind]
    make: Callable[[Wanted], Backend]
    alone: Callable[[list[int]], np.ndarray]
    calls: Callable[[Backend], list[GraphCall]] | None = None
    not_applicable: Mapping[int, str] = field(default_factory=dict)
    column: str | None = None
    bitwise: bool = True
    shared_column: bool = False
    draw: Callable[[np.ndarray, Sequence[DeviceSampling]], np.ndarray] | None = None
    drift: Callable[[], Sequence[str]] | None = None
    placeholders: Callable[[], tuple[Collection[str], Collection[str]]] | None = None
    written_config: Callable[[Wanted], Mapping[str, object]] | None = None
