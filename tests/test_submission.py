from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from neuron_server.backend import BackendInfo
from neuron_server.errors import ValidationError
from neuron_server.grammar import Grammar
from neuron_server.request import GenerationRequest, SamplingParams
from neuron_server.shape import StaticShape
from neuron_server.submission import check

INFO = BackendInfo(StaticShape(4, 24), max_prompt_tokens=10, vocab_size=50)


def ask(*tokens: int, new: int = 3, prompt: int | None = None) -> GenerationRequest:
    return GenerationRequest(tokens, len(tokens) if prompt is None else prompt, new)


@pytest.mark.parametrize(
    "request_", [ask(0), ask(49, new=23), ask(*[1] * 10), ask(*[1] * 23, prompt=5, new=1)]
)
def test_what_fits_the_slot_may_run(request_: GenerationRequest) -> None:
    check(request_, INFO)


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (ask(), "input_ids is empty"),
        (ask(1, 2, prompt=0), "prompt_length is 0; with 2 input_ids it is 1 to 2"),
        (ask(1, 2, prompt=3), "prompt_length is 3; with 2 input_ids it is 1 to 2"),
        (ask(1, 2, new=0), "max_new_tokens is 0"),
        (ask(*[1] * 11), "prompt_length is 11; the longest prompt is 10"),
        (ask(1, 2, new=23), "2 input_ids and max_new_tokens 23 exceed a slot of 24"),
        (ask(*[1] * 24, prompt=5, new=1), "24 input_ids and max_new_tokens 1 exceed a slot of 24"),
        (ask(1, 50), "input_ids has 50, but the vocabulary has 50"),
        (ask(1, -1), "input_ids has -1"),
        (ask(1, 2**70), "input_ids has 1180591620717411303424"),
    ],
)
def test_what_can_never_run_is_refused_in_numbers(request_: GenerationRequest, sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        check(request_, INFO)


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0.0},
        {"temperature": float("nan")},
        {"temperature": math.inf},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"typical_p": -0.5},
        {"repetition_penalty": 0.0},
        {"frequency_penalty": float("nan")},
        {"seed": -1},
        {"seed": 2**64},
        {"top_n_tokens": -1},
        {"top_n_tokens": 51},
    ],
)
def test_sampling_that_cannot_be_followed_is_refused_by_name(change: dict[str, float]) -> None:
    check(GenerationRequest((1,), 1, 1, SamplingParams(top_n_tokens=50)), INFO)
    with pytest.raises(ValidationError, match=next(iter(change))):
        check(GenerationRequest((1,), 1, 1, SamplingParams(**change)), INFO)


@pytest.mark.group(16)
@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"prompt_logprobs": True}, "prompt_logprobs"),
        ({"grammar": Grammar("regex", "a+")}, "grammar"),
        ({"sampling": SamplingParams(repetition_penalty=1.1)}, "repetition_penalty"),
        ({"sampling": SamplingParams(do_sample=True, top_p=0.9)}, "top_p"),
        ({"sampling": SamplingParams(do_sample=True, top_k=33)}, "top_k"),
    ],
)
def test_a_device_that_samples_is_not_asked_for_what_needs_logits(change: dict[str, Any], name: str) -> None:
    device = replace(INFO, output="tokens", max_top_k=32)
    request = replace(ask(1, 2), **change)
    check(request, INFO)
    with pytest.raises(ValidationError, match=f"`{name}` is "):
        check(request, device)


def test_a_device_that_samples_takes_a_seed_which_every_request_has_and_top_p_where_that_is_agreed() -> None:
    device = replace(INFO, output="tokens", max_top_k=32)
    check(replace(ask(1, 2), sampling=SamplingParams(do_sample=True, seed=7, top_k=32)), device)
    narrow = replace(ask(1, 2), sampling=SamplingParams(do_sample=True, top_p=0.9))
    check(narrow, device, approximate_top_p=True)
