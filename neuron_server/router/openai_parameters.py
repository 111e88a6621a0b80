"""What a chat or a completion asks for, as TGI's own parameters."""

from __future__ import annotations

import ctypes

from neuron_server.router.openai_schema import ChatRequest, CompletionRequest
from neuron_server.router.tgi_schema import GenerateParameters, GrammarType


def chat_parameters(request: ChatRequest, grammar: GrammarType | None = None) -> GenerateParameters:
    """``grammar`` is the one of the tools; without it the request's ``response_format`` holds.

    As in TGI ``presence_penalty`` p is the repetition penalty p + 2.0, so that 0 is not neutral and -2.0 is
    refused, and ``top_logprobs`` counts without ``logprobs``. Unlike there ``model`` is no adapter, and the
    prompt is not scored, which no answer of these routes shows.
    """
    penalty = request.presence_penalty
    return _shared(request).model_copy(
        update={
            "repetition_penalty": None if penalty is None else penalty + 2.0,
            "top_n_tokens": request.top_logprobs,
            "grammar": grammar or request.response_format,
        }
    )


def completion_parameters(request: CompletionRequest) -> GenerateParameters:
    """The same for every prompt of the request."""
    return _shared(request).model_copy(update={"repetition_penalty": request.repetition_penalty})


def _shared(request: ChatRequest | CompletionRequest) -> GenerateParameters:
    """What both routes have under the same names; temperature 0 means greedy."""
    greedy = _is_zero(request.temperature)
    return GenerateParameters(
        do_sample=not greedy,
        temperature=None if greedy else request.temperature,
        frequency_penalty=request.frequency_penalty,
        top_p=_top_p(request.top_p, greedy=greedy),
        max_new_tokens=request.max_tokens,
        stop=request.stop or [],
        details=True,
        seed=request.seed,
    )


def _top_p(top_p: float | None, *, greedy: bool) -> float | None:
    """Temperature 0 asks for the likeliest token, whatever ``top_p`` says: alone it would turn sampling on.

    One that is out of range stays, to be refused.
    """
    return None if greedy and top_p is not None and 0.0 < top_p < 1.0 else top_p


def _is_zero(temperature: float | None) -> bool:
    """Whether it is 0 in 32 bits, which means greedy; every other temperature samples, none at all too."""
    return temperature is not None and ctypes.c_float(temperature).value == 0.0
