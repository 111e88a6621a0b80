"""Published figures of Inferentia2, as data: what the predictions are scaled from and are compared with.

None of them was measured by this project. Two kinds: ``RAW`` are the speeds of a model without a server, from
which the two numbers of the prediction come; ``SERVING`` are benchmarks of whole servers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

#: Tokens of the prefill graph that every figure here was measured with.
PREFILL_WIDTH = 4096

_CHARTS = "optimum-neuron's documentation, performance charts, June 2025"
_BENCHMARKS = "optimum-neuron's benchmark folder"


@dataclass(frozen=True, slots=True)
class RawSpeed:
    """A model on ``tensor_parallel`` cores: seconds of one prefill, and of one decode step by slots.

    The steps are those at the longer prompts measured (1792 tokens), which the usual workload is nearer to.
    ``end_to_end``: generated tokens per second by slots, lowest and highest, of the same charts.
    """

    model: str
    parameters: int
    tensor_parallel: int
    prefill_s: float
    steps: Mapping[int, float]
    end_to_end: Mapping[int, tuple[float, float]]
    source: str = _CHARTS


@dataclass(frozen=True, slots=True)
class ServingFigure:
    """Generated tokens per second of a server under as much load as it takes; ``users`` at once."""

    model: str
    parameters: int
    server: str
    date: str
    instance: str
    tensor_parallel: int
    replicas: int
    slots: int
    tokens_per_s: float
    users: int | None = None
    on_device_sampling: bool = True
    source: str = _BENCHMARKS


_8B, _7B, _70B = 8_030_261_248, 7_615_616_512, 70_553_706_496

RAW: tuple[RawSpeed, ...] = (
    RawSpeed(
        "Llama-3.1-8B",
        _8B,
        tensor_parallel=8,
        prefill_s=0.29,
        steps={1: 0.011, 4: 0.013, 8: 0.016, 16: 0.021, 32: 0.033, 48: 0.039},
        end_to_end={
            1: (83, 83),
            4: (231, 236),
            8: (319, 323),
            16: (405, 410),
            32: (456, 514),
            48: (509, 555),
        },
    ),
    RawSpeed(
        "Llama-3.3-70B",
        _70B,
        tensor_parallel=24,
        prefill_s=1.07,
        steps={1: 0.030, 4: 0.037, 8: 0.044},
        end_to_end={1: (29, 29), 4: (75, 75), 8: (104, 104)},
    ),
)

SERVING: tuple[ServingFigure, ...] = (
    ServingFigure("Llama-3.1-8B", _8B, "vLLM plugin of optimum-neuron", "2025-09-16",
                  "inf2.48xlarge", 8, 3, 32, 1226.0, 128),
    ServingFigure("Llama-3.1-8B", _8B, "TGI, optimum-neuron 0.2", "2025-06-03",
                  "inf2.48xlarge", 8, 3, 32, 914.0, 128),
    ServingFigure("Llama-3.1-8B", _8B, "TGI, optimum-neuron 0.0.2x", "2024-10-08",
                  "inf2.48xlarge", 8, 3, 32, 734.6, 128, on_device_sampling=False),
    ServingFigure("Llama-3.1-8B", _8B, "vLLM plugin of optimum-neuron, chunked prefill", "2026-03-03",
                  "inf2.48xlarge", 8, 1, 32, 440.4, 32),
    ServingFigure("Llama-3.1-8B", _8B, "vLLM plugin of optimum-neuron", "2026-03-03",
                  "inf2.48xlarge", 8, 1, 32, 426.2, 32),
    ServingFigure("Llama-3.1-8B", _8B, "vLLM plugin of optimum-neuron, sampling on the host", "2026-03-03",
                  "inf2.48xlarge", 8, 1, 32, 177.0, 32, on_device_sampling=False),
    ServingFigure("Qwen2.5-7B", _7B, "TGI, optimum-neuron 0.0.28", "2024-12-03",
                  "inf2.48xlarge", 8, 3, 32, 844.0, on_device_sampling=False),
    ServingFigure("DeepSeek-R1-Distill-Llama-70B", _70B, "TGI, optimum-neuron 0.2", "2025-06-04",
                  "inf2.48xlarge", 24, 1, 8, 95.3),
    ServingFigure("Llama-3-70B", _70B, "TGI, optimum-neuron 0.0.28", "undated",
                  "inf2.48xlarge", 24, 1, 4, 66.6, 16, on_device_sampling=False),
)  # fmt: skip

#: Figures for a model within this part of a measured one's parameters are called predicted, not extrapolated.
NEAR = 0.25


def serving_near(parameters: int, instance: str) -> tuple[ServingFigure, ...]:
    """The benchmarks of models of nearly this size on ``instance``, nearest size first, then fastest."""
    near = (f for f in SERVING if f.instance == instance and abs(parameters / f.parameters - 1) <= NEAR)
    return tuple(sorted(near, key=lambda f: (abs(f.parameters - parameters), -f.tokens_per_s)))
