"""Group 8 from above: the engine on every backend, with requests that are new, resumed or taken back."""

from __future__ import annotations

import random

import pytest
from contract.checked_batch import Alone
from contract.world import World

from neuron_server.backend import BackendInfo
from neuron_server.engine.batcher import Batcher
from neuron_server.engine.schedule import Policy
from neuron_server.engine.warmup import warm_up
from neuron_server.request import GenerationRequest

V, REQUESTS = 64, 10

#: (subject, text) -> its greedy next token: worlds of a subject share a model, and a shape its requests.
_NEXT: dict[tuple[str, tuple[int, ...]], int] = {}


@pytest.mark.group(8)
@pytest.mark.parametrize(
    "shape", [(4, 24, 6), (1, 16, 5), (3, 20, 2)], ids="slots {0[0]} of {0[1]}, C {0[2]}".format
)
def test_requests_get_their_own_text_whoever_shares_the_batch(
    world: World, alone: Alone, shape: tuple[int, int, int]
) -> None:
    backend = world.make(*shape)
    rng = random.Random(shape[1])
    warm_up(backend)
    batcher: Batcher[int] = Batcher(backend, Policy())
    made: dict[int, list[int]] = {key: [] for key in range(REQUESTS)}
    requests = {key: _request(rng, backend.info, alone, world.subject.name) for key in made}
    waiting, withdrawn = list(requests), set()
    while waiting or not batcher.idle:
        for key in waiting[: rng.randint(0, 3)]:
            waiting.remove(key)
            batcher.submit(key, requests[key])
        if rng.random() < 0.05:
            withdrawn.add(rng.randrange(REQUESTS))
        for key in withdrawn.difference(waiting):
            batcher.cancel(key)
        for outcome in batcher.turn():
            assert not outcome.errors
            for key, event in outcome.tokens:
                made[key].append(event.token_id)
    for key, request in requests.items():
        want = _greedy(alone, world.subject.name, request.input_ids, request.max_new_tokens)
        assert made[key] == (want[: len(made[key])] if key in withdrawn else want), (key, request)
    assert sum(map(len, made.values())) > REQUESTS
    backend.close()


def _request(rng: random.Random, info: BackendInfo, alone: Alone, name: str) -> GenerationRequest:
    """One of three is resumed: its text so far may well be longer than the prefill graph."""
    length, most = info.shape.max_length, info.max_prompt_tokens
    prompt = [rng.randrange(V) for _ in range(rng.randint(1, most))]
    resumed = rng.choice((0, 0, rng.randint(0, length - 1 - len(prompt))))
    text = (*prompt, *_greedy(alone, name, prompt, resumed))
    return GenerationRequest(text, len(prompt), rng.randint(1, length - len(text)))


def _greedy(alone: Alone, name: str, text: list[int] | tuple[int, ...], count: int) -> list[int]:
    tokens = list(text)
    for _ in range(count):
        key = (name, tuple(tokens))
        if key not in _NEXT:
            _NEXT[key] = int(alone(tokens)[-1].argmax())
        tokens.append(_NEXT[key])
    return tokens[len(text) :]
