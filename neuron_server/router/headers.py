"""The ``x-*`` headers of every route that generates."""

from __future__ import annotations

import os
from collections.abc import Sequence

from neuron_server.router.answer import Ending


def compute_headers(characters: int) -> dict[str, str]:
    """What is known before anything is generated; ``characters`` of the prompt text, as code points."""
    return {
        "x-compute-type": os.environ.get("COMPUTE_TYPE", "gpu+optimized"),
        "x-compute-characters": str(characters),
    }


def time_headers(endings: Sequence[Ending]) -> dict[str, str]:
    """Milliseconds and counts, summed over the generations of one request even though they ran together."""

    def milliseconds(seconds: Sequence[float]) -> str:
        return str(sum(int(s * 1e3) for s in seconds))

    total_s, validation_s, queue_s, inference_s = zip(*(ending.timings for ending in endings), strict=True)
    return {
        "x-total-time": milliseconds(total_s),
        "x-validation-time": milliseconds(validation_s),
        "x-queue-time": milliseconds(queue_s),
        "x-inference-time": milliseconds(inference_s),
        "x-time-per-token": milliseconds([ending.time_per_token_s for ending in endings]),
        "x-prompt-tokens": str(sum(ending.input_length for ending in endings)),
        "x-generated-tokens": str(sum(ending.generated_tokens for ending in endings)),
    }


def one_shot_headers(characters: int, ending: Ending) -> dict[str, str]:
    """All headers of a one-shot answer of one generation; ``x-compute-time`` is in seconds."""
    return {
        **compute_headers(characters),
        "x-compute-time": repr(ending.timings.total_s),
        **time_headers([ending]),
    }
