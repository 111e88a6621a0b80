"""What a request must satisfy before it gets a slot, whoever submits it.

The router has validated its requests; this is the generator's own edge, so that a wrong router, or a client
written by hand, hurts only the request it sent.
"""

from __future__ import annotations

import math

from neuron_server.backend import BackendInfo
from neuron_server.device_sampling import check_on_device
from neuron_server.errors import ValidationError
from neuron_server.request import GenerationRequest, SamplingParams


def check(request: GenerationRequest, info: BackendInfo, *, approximate_top_p: bool = False) -> None:
    """Raise ``ValidationError``, naming the field, its value and its bound, for what the slots cannot run.

    ``approximate_top_p`` as in ``device_sampling``. A seed is never refused here: every request has one, and
    only the router knows whether its client chose it.
    """
    _check_lengths(request, info)
    smallest, largest = min(request.input_ids), max(request.input_ids)
    if smallest < 0 or largest >= info.vocab_size:
        wrong = smallest if smallest < 0 else largest
        raise ValidationError(f"input_ids has {wrong}, but the vocabulary has {info.vocab_size} tokens")
    _check_sampling(request.sampling, info.vocab_size)
    asked: dict[str, object] = {}
    if request.prompt_logprobs:
        asked["prompt_logprobs"] = True
    if request.grammar is not None:
        asked["grammar"] = request.grammar.kind
    check_on_device(request.sampling, info, asked, approximate_top_p=approximate_top_p)


def _check_lengths(request: GenerationRequest, info: BackendInfo) -> None:
    tokens, shape = len(request.input_ids), info.shape
    if tokens == 0:
        raise ValidationError("input_ids is empty; a request needs at least one token")
    if not 1 <= request.prompt_length <= tokens:
        raise ValidationError(
            f"prompt_length is {request.prompt_length}; with {tokens} input_ids it is 1 to {tokens}"
        )
    if request.prompt_length > info.max_prompt_tokens:
        raise ValidationError(
            f"prompt_length is {request.prompt_length}; the longest prompt is {info.max_prompt_tokens} tokens"
        )
    if request.max_new_tokens < 1:
        raise ValidationError(f"max_new_tokens is {request.max_new_tokens}; it must be at least 1")
    if request.max_new_tokens > shape.room(tokens):
        raise ValidationError(
            f"{tokens} input_ids and max_new_tokens {request.max_new_tokens} exceed a slot of "
            f"{shape.max_length} tokens"
        )


def _check_sampling(sampling: SamplingParams, vocab_size: int) -> None:
    p, q, top_n = sampling.repetition_penalty, sampling.frequency_penalty, sampling.top_n_tokens
    rules = (  # written so that NaN fails every one
        ("temperature", sampling.temperature, 0.0 < sampling.temperature < math.inf, "above 0"),
        ("top_k", sampling.top_k, sampling.top_k >= 0, "0 (off) or more"),
        ("top_p", sampling.top_p, 0.0 < sampling.top_p <= 1.0, "above 0 and at most 1"),
        ("typical_p", sampling.typical_p, 0.0 < sampling.typical_p <= 1.0, "above 0 and at most 1"),
        ("repetition_penalty", p, 0.0 < p < math.inf, "above 0"),
        ("frequency_penalty", q, math.isfinite(q), "finite"),
        ("seed", sampling.seed, 0 <= sampling.seed < 2**64, "0 to 2**64 - 1"),
        ("top_n_tokens", top_n, 0 <= top_n <= vocab_size, f"at most {vocab_size}"),
    )
    for name, value, holds, bound in rules:
        if not holds:
            raise ValidationError(f"{name} is {value}; it must be {bound}")
