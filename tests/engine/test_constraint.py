"""Constraints in the engine: masked, advanced, replayed; and a broken one breaks nobody else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from alternating import GRAMMAR, Alternating
from model_backend import ModelBackend, expected_events, history_logits, without_times

from neuron_server.engine.batcher import Batcher
from neuron_server.engine.plain import generate
from neuron_server.engine.sampling import SampleRow, sample
from neuron_server.engine.schedule import Policy
from neuron_server.engine.warp import Choice
from neuron_server.errors import GenerationError, NeuronTgiError, ValidationError
from neuron_server.event import FinishReason, TokenEvent
from neuron_server.request import GenerationRequest, SamplingParams

VOCAB = 50
EVEN, ODD = [2, 4, 6, 8, 10], [1, 3, 5, 7, 9]


def ask(*tokens: int, new: int = 6, stop: int | None = None, **sampling: object) -> GenerationRequest:
    stops = frozenset() if stop is None else frozenset({stop})
    params = SamplingParams(**sampling)
    return GenerationRequest(tokens, len(tokens), new, params, stops, grammar=GRAMMAR)


def run(
    backend: ModelBackend, asked: list[tuple[GenerationRequest, Alternating | None]]
) -> tuple[dict[int, list[TokenEvent]], dict[int, NeuronTgiError]]:
    batcher: Batcher[int] = Batcher(backend, Policy(waiting_served_ratio=0.0))
    events: dict[int, list[TokenEvent]] = {n: [] for n in range(len(asked))}
    errors: dict[int, NeuronTgiError] = {}
    for number, (request, constraint) in enumerate(asked):
        batcher.submit(number, request, constraint=constraint)
    while not batcher.idle:
        for outcome in batcher.turn():
            errors |= dict(outcome.errors)
            for number, event in outcome.tokens:
                events[number].append(event)
    assert not backend.live
    return events, errors


@pytest.mark.parametrize("mode", ["insert", "rebuild"])
@pytest.mark.parametrize(
    "sampling",
    [{}, {"do_sample": True, "seed": 7}, {"do_sample": True, "top_k": 3, "top_p": 0.9, "top_n_tokens": 4}],
)
@pytest.mark.parametrize("prompt", [(5,), (5, 6, 7)])
def test_every_token_is_allowed_in_either_mode(mode, sampling, prompt):
    constraint = Alternating([EVEN, ODD])
    events, errors = run(ModelBackend(3, 30, mode=mode), [(ask(*prompt, **sampling), constraint)])
    ids = [event.token_id for event in events[0]]
    assert not errors
    assert all(token in (EVEN, ODD)[n % 2] for n, token in enumerate(ids))
    assert constraint.seen == ids[:-1]  # nobody asks after the last one
    for n, event in enumerate(events[0]):
        assert {top.token_id for top in event.top_tokens} <= set((EVEN, ODD)[n % 2])


def test_log_probabilities_are_those_among_the_allowed():
    logits = history_logits([1, 2], VOCAB)
    [choice] = sample(
        logits[None].copy(), [SampleRow(SamplingParams(top_n_tokens=5), 0, None, Alternating([ODD]))]
    )
    assert isinstance(choice, Choice)
    allowed = logits[ODD].astype(np.float64)
    expected = allowed - np.log(np.exp(allowed).sum())
    assert choice.token_id == ODD[int(expected.argmax())]
    assert choice.logprob == pytest.approx(expected.max(), abs=1e-6)
    assert sorted(top.token_id for top in choice.top_tokens) == ODD
    assert sum(np.exp(top.logprob) for top in choice.top_tokens) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    "params", [SamplingParams(), SamplingParams(do_sample=True), SamplingParams(top_n_tokens=5)]
)
def test_a_row_with_one_allowed_token_takes_it_for_certain(params):
    [choice] = sample(history_logits([3], VOCAB)[None], [SampleRow(params, 0, None, Alternating([[17]]))])
    assert isinstance(choice, Choice)
    assert (choice.token_id, str(choice.logprob)) == (17, "0.0")


@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(do_sample=True)])
def test_a_row_with_no_allowed_token_has_no_choice(params):
    assert sample(history_logits([3], VOCAB)[None], [SampleRow(params, 0, None, Alternating([[]]))]) == [None]


def test_the_mask_comes_after_the_penalties():
    first = ask(1, 2, new=1, repetition_penalty=50.0)
    events, _ = run(ModelBackend(1, 30), [(first, Alternating([[1, 2, 30]]))])
    assert events[0][0].token_id == 30


@pytest.mark.parametrize("mode", ["insert", "rebuild"])
def test_neighbours_change_nothing_for_either_kind(mode):
    asked = [(ask(n, n + 1, do_sample=n % 2 == 0, seed=n), Alternating([EVEN, ODD])) for n in range(5)]
    free = [replace(ask(n, 3, do_sample=n % 2 == 0, seed=n), grammar=None) for n in range(5)]
    mixed = [pair for n in range(5) for pair in (asked[n], (free[n], None))]
    alone = [run(ModelBackend(1, 30, mode=mode), [(r, c.fork())])[0][0] for r, c in asked]
    together, errors = run(ModelBackend(4, 30, mode=mode), mixed)
    assert not errors
    for n in range(5):
        assert without_times(together[2 * n]) == without_times(alone[n])
        assert without_times(together[2 * n + 1]) == expected_events(free[n], VOCAB)


def test_where_nothing_can_follow_the_text_ends():
    events, _ = run(
        ModelBackend(1, 30), [(ask(1, 2, new=20, stop=0), Alternating([ODD], frozenset({0}), length=3))]
    )
    assert [event.token_id for event in events[0]][3:] == [0]
    assert events[0][-1].finish is FinishReason.EOS_TOKEN


@pytest.mark.parametrize("at", [0, 2])
def test_a_constraint_that_breaks_ends_its_request_and_no_other(at):
    broken = (ask(1, 2), Alternating([ODD], breaks_at=at))
    other = (ask(3, 4), Alternating([EVEN]))
    free = replace(ask(5, 6), grammar=None)
    events, errors = run(ModelBackend(3, 30), [broken, other, (free, None)])
    assert len(events[0]) == at
    assert list(errors) == [0]
    assert isinstance(errors[0], ValidationError)
    assert str(errors[0]) == "grammar is too complex to follow: broken on purpose"
    assert len(events[1]) == 6
    assert without_times(events[2]) == expected_events(free, VOCAB)


def test_a_constraint_that_refuses_what_its_mask_allowed_ends_its_request_and_no_other():
    events, errors = run(
        ModelBackend(2, 30), [(ask(1, 2), Alternating([[9]], refuses=9)), (ask(3, 4), Alternating([EVEN]))]
    )
    assert isinstance(errors[0], GenerationError)
    assert (len(events[0]), len(events[1])) == (0, 6)


def test_a_grammar_without_its_constraint_is_refused_rather_than_ignored():
    with pytest.raises(ValidationError, match="grammar is not supported"):
        generate(ModelBackend(1, 30), [ask(1, 2)])
