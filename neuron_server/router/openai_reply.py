"""What the answers of OpenAI's routes have in common, whole or in chunks."""

from __future__ import annotations

import time
from collections.abc import Sequence

from neuron_server.event import FinishReason
from neuron_server.router.answer import Ending
from neuron_server.router.identity import fingerprint
from neuron_server.router.json_reply import Json


def head(kind: str, model: str) -> Json:
    """The first fields of every answer and of every chunk; ``kind`` is its ``object``."""
    return {
        "object": kind,
        "id": "",
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": fingerprint(),
    }


def finish_reason(reason: FinishReason) -> str:
    """OpenAI's word for the end of the text, TGI's own for the others (``stop_sequence`` is not ``stop``)."""
    return "stop" if reason is FinishReason.EOS_TOKEN else reason.value


def usage(endings: Sequence[Ending]) -> Json:
    """The counts, summed over the generations of one answer."""
    prompt = sum(ending.input_length for ending in endings)
    completion = sum(ending.generated_tokens for ending in endings)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
