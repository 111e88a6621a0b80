"""Predicted throughput and time to first token, from two published numbers of a model.

A prefill takes the device for itself, and as long as its graph is wide, whatever the prompt's length; a
decode step advances all slots. So a request costs the replica one prefill and a B-th of each of its g steps:

    seconds per request = prefill + g x step(B) / B      tokens per second = g / that

Nothing here was measured by this project. Where a model is not near a published one, it is scaled as the two
published ones scale between each other: in prefill they do 22 to 28 TFLOP/s per core, and in a step with one
slot they read 182 to 196 GB/s of weights per core.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from launcher.planner.anchors import NEAR, PREFILL_WIDTH, RAW, RawSpeed
from launcher.planner.dimensions import count

Label = Literal["predicted", "extrapolated"]

#: Beyond this factor in parameters, or outside these bytes of weights per core, nothing is said.
_FURTHEST = 3.0
_WEIGHTS_PER_CORE = (1e9, 12e9)
_ANCHOR_ITEMSIZE = 2

#: Sampling on the host, of the server that was measured both ways (Llama-3.1-8B, 32 slots).
_HOST_SAMPLING = 426.2 / 177.0

#: What the model has been found to be wrong by, at most, for the servers that keep the slots full.
ACCURACY = 0.12


@dataclass(frozen=True, slots=True)
class Workload:
    """Tokens of each request; the default is the workload of the published benchmarks."""

    prompt_tokens: int = 1500
    new_tokens: int = 250


@dataclass(frozen=True, slots=True)
class Prediction:
    """Seconds, and generated tokens per second of all replicas together, slots always full.

    ``ttft_s``: of a request that finds a free slot and nobody before it; ``burst_ttft_s``: of the last of as
    many requests as a replica has slots that arrive at once. ``step_s``: between two tokens, while nobody is
    being prefilled.
    """

    label: Label
    tokens_per_s: float
    requests_per_s: float
    ttft_s: float
    burst_ttft_s: float
    step_s: float
    prefill_s: float
    source: str
    basis: str


@dataclass(frozen=True, slots=True)
class NotPredicted:
    """Why there is no figure."""

    reason: str


@dataclass(frozen=True, slots=True)
class Case:
    """What a prediction depends on.

    ``dense``: every parameter takes part in every token. ``whole_prefill``: the prefill graph takes the whole
    prompt, not chunks of it.
    """

    parameters: int
    tensor_parallel: int
    replicas: int
    slots: int
    prefill_width: int
    inserts: bool
    on_device_sampling: bool
    dense: bool
    legacy: bool
    itemsize: int = 2
    whole_prefill: bool = True


def predict(case: Case, workload: Workload) -> Prediction | NotPredicted:
    """The figures for ``case``, or why there are none."""
    if refusal := _out_of_scope(case):
        return NotPredicted(refusal)
    anchor = min(RAW, key=lambda a: abs(math.log(case.parameters / a.parameters)))
    ratio = case.parameters / anchor.parameters
    near = abs(ratio - 1) <= NEAR and case.tensor_parallel == anchor.tensor_parallel
    if not near and (refusal := _too_far(case, ratio, anchor)):
        return NotPredicted(refusal)
    step = _step(anchor.steps, case.slots)
    if step is None:
        most = max(anchor.steps)
        return NotPredicted(
            f"{anchor.model}, the nearest model measured, was measured with up to {most} slots"
        )
    per_core = ratio * anchor.tensor_parallel / case.tensor_parallel
    as_measured = near and case.prefill_width == PREFILL_WIDTH and case.on_device_sampling
    figures = _figures(
        prefill_s=anchor.prefill_s * per_core * case.prefill_width / PREFILL_WIDTH,
        step_s=step * per_core,
        case=case,
        workload=workload,
    )
    return Prediction(
        "predicted" if as_measured else "extrapolated",
        *figures,
        source=f"{anchor.source} ({anchor.model}, tensor parallel {anchor.tensor_parallel}, bf16)",
        basis=_basis(anchor, near=near, ratio=ratio, case=case),
    )


def _figures(
    prefill_s: float, step_s: float, case: Case, workload: Workload
) -> tuple[float, float, float, float, float, float]:
    """The figures of a ``Prediction`` in its order."""
    per_request = prefill_s + workload.new_tokens * step_s / case.slots
    if not case.on_device_sampling:
        per_request *= _HOST_SAMPLING
        step_s = (per_request - prefill_s) * case.slots / workload.new_tokens
    requests = case.replicas / per_request
    burst = case.slots * prefill_s
    return requests * workload.new_tokens, requests, prefill_s, burst, step_s, prefill_s


def _out_of_scope(case: Case) -> str | None:
    if case.legacy:
        return (
            "the published speeds are those of the current generation (NxD); the legacy one has other graphs "
            "and samples on the host"
        )
    if not case.dense:
        return "no figure is published for a mixture of experts"
    if not case.inserts and case.slots > 1:
        return "no figure is published for a server that rebuilds the whole cache for each request"
    if not case.whole_prefill:
        return "the speeds of single steps are published for whole prefills, not for chunked ones"
    if case.itemsize != _ANCHOR_ITEMSIZE:
        return "figures are published for 16 bit only"
    return None


def _too_far(case: Case, ratio: float, anchor: RawSpeed) -> str | None:
    lowest, highest = _WEIGHTS_PER_CORE
    weights = case.parameters * case.itemsize / case.tensor_parallel
    if not 1 / _FURTHEST <= ratio <= _FURTHEST or not lowest <= weights <= highest:
        return (
            f"no published figure near this: {count(case.parameters)} parameters on "
            f"{case.tensor_parallel} core(s), where {anchor.model} on {anchor.tensor_parallel} is the nearest"
        )
    return None


def _step(steps: Mapping[int, float], slots: int) -> float | None:
    """Seconds of a step with ``slots``, between two measured sizes on the line through them."""
    if slots in steps:
        return steps[slots]
    below, above = (
        max((s for s in steps if s < slots), default=None),
        min((s for s in steps if s > slots), default=None),
    )
    if below is None or above is None:
        return None
    return steps[below] + (steps[above] - steps[below]) * (slots - below) / (above - below)


def _basis(anchor: RawSpeed, *, near: bool, ratio: float, case: Case) -> str:
    """How the numbers were scaled, in words."""
    said = [f"prefill {anchor.prefill_s} s x {ratio:.2f} (parameters)"]
    if case.tensor_parallel != anchor.tensor_parallel:
        said.append(f"x {anchor.tensor_parallel}/{case.tensor_parallel} (cores), steps alike")
    if case.prefill_width != PREFILL_WIDTH:
        said.append(
            f"x {case.prefill_width}/{PREFILL_WIDTH} (width of the prefill graph; not counted: attention "
            "grows faster than that, and steps read more or less cache)"
        )
    if not case.on_device_sampling:
        said.append(
            f"throughput / {_HOST_SAMPLING:.1f} for sampling on the host, as the server measured both ways"
        )
    if not near:
        said.append("measured for another size or number of cores: treat it as an order of magnitude")
    return ", ".join(said)
