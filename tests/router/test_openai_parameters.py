"""What a chat or a completion asks for, in TGI's parameters (conformance cases 100, 101 and 104)."""

from __future__ import annotations

import pytest

from neuron_server.router.openai_parameters import chat_parameters, completion_parameters
from neuron_server.router.openai_schema import ChatRequest, CompletionRequest
from neuron_server.router.tgi_schema import GrammarType

REGEX = {"type": "regex", "value": "a+"}


def of_chat(**fields):
    return chat_parameters(ChatRequest.model_validate({"messages": [], **fields}))


def of_completion(**fields):
    return completion_parameters(CompletionRequest.model_validate({"prompt": "a", **fields}))


@pytest.mark.case(100, 101)
@pytest.mark.parametrize("make", [of_chat, of_completion])
@pytest.mark.parametrize(
    ("given", "sampling"),
    [
        ({}, (True, None)),
        ({"temperature": 0.5}, (True, 0.5)),
        ({"temperature": 1.0}, (True, 1.0)),
        ({"temperature": -1.0}, (True, -1.0)),  # refused later, by its name
        ({"temperature": 0}, (False, None)),
        ({"temperature": -0.0}, (False, None)),
        ({"temperature": 1e-60}, (False, None)),  # 0 in 32 bits
    ],
)
def test_only_a_temperature_of_0_is_greedy(make, given, sampling):
    parameters = make(**given)
    assert (parameters.do_sample, parameters.temperature) == sampling


@pytest.mark.case(104)
def test_a_presence_penalty_is_a_repetition_penalty_2_above():
    assert of_chat().repetition_penalty is None
    assert [of_chat(presence_penalty=p).repetition_penalty for p in (0.5, 0, -2)] == [2.5, 2.0, 0.0]


def test_the_rest_of_a_chat_has_a_parameter_each():
    parameters = of_chat(
        max_tokens=5, stop=["x"], seed=7, top_p=0.5, frequency_penalty=1.0, top_logprobs=2, model="other"
    )
    assert (parameters.max_new_tokens, parameters.stop, parameters.seed) == (5, ["x"], 7)
    assert (parameters.top_p, parameters.frequency_penalty, parameters.top_n_tokens) == (0.5, 1.0, 2)
    assert (parameters.adapter_id, parameters.return_full_text) == (None, None)
    assert of_chat().stop == []


def test_the_grammar_of_the_tools_goes_before_the_response_format():
    request = ChatRequest.model_validate({"messages": [], "response_format": REGEX})
    assert chat_parameters(request).grammar.value == "a+"
    assert chat_parameters(request, GrammarType(type="json", value={})).grammar.value == {}


def test_the_rest_of_a_completion_has_a_parameter_each():
    parameters = of_completion(
        max_tokens=5, stop="x", seed=7, top_p=0.5, frequency_penalty=1.0, repetition_penalty=1.5, model="m"
    )
    assert (parameters.max_new_tokens, parameters.stop, parameters.seed) == (5, ["x"], 7)
    assert (parameters.top_p, parameters.frequency_penalty, parameters.repetition_penalty) == (0.5, 1.0, 1.5)
    assert parameters.adapter_id is None


@pytest.mark.parametrize("make", [of_chat, of_completion])
def test_temperature_zero_is_greedy_whatever_top_p_says(make):
    assert make(temperature=0, top_p=0.9).top_p is None
    assert make(temperature=0, top_p=1.0).top_p == 1.0  # to be refused, as ever
