"""Groups 12 to 16: a device that samples, and hands over tokens."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from contract.checked_batch import Alone, said
from contract.subject import Subject
from contract.twins import Twins
from contract.world import B, T, World

from neuron_server import errors
from neuron_server.backend import GREEDY, Backend, DecodeRow, DeviceSampling, PrefillRow
from neuron_server.device_sampling import device_sampling
from neuron_server.grammar import Grammar
from neuron_server.request import GenerationRequest, SamplingParams
from neuron_server.submission import check

pytestmark = pytest.mark.only(output="tokens")

NAN, INF = float("nan"), float("inf")

BAD: list[dict[str, Any]] = [
    *({"top_k": wrong} for wrong in (0, -1, 1.5, NAN, 257)),
    *({"top_p": wrong} for wrong in (0.0, -0.5, 1.1, NAN, INF)),
    *({"temperature": wrong} for wrong in (0.0, -1.0, NAN, INF)),
]


@pytest.mark.group(12)
@pytest.mark.parametrize("wrong", BAD, ids=str)
def test_bad_rows_are_refused_and_change_nothing(twins: Twins, wrong: dict[str, Any]) -> None:
    bad = replace(DeviceSampling(2, 0.5, 0.5), **wrong)
    backend = twins.first.backend
    held = twins.first.texts
    rebuild = backend.info.prefill_mode == "rebuild"
    running = [PrefillRow(slot, text) for slot, text in held.items()] if rebuild else []
    steps = [DecodeRow(slot, 1, len(text)) for slot, text in held.items()]
    with pytest.raises(errors.BadSamplingError, match=next(iter(wrong))):
        backend.prefill([*running, PrefillRow(0, [1, 2, 3], sampling=bad)])
    with pytest.raises(errors.BadSamplingError, match=next(iter(wrong))):
        backend.decode([steps[0], replace(steps[1], sampling=bad)])


@pytest.mark.group(12)
def test_the_widest_row_is_taken_and_one_wider_is_not(backend: Backend) -> None:
    most = backend.info.max_top_k
    assert 1 < most <= 256
    backend.prefill([PrefillRow(0, [1, 2, 3], sampling=DeviceSampling(most, 1.0, 1.0))])
    with pytest.raises(errors.BadSamplingError, match=str(most)):
        backend.decode([DecodeRow(0, 1, 3, DeviceSampling(most + 1, 1.0, 1.0))])


@pytest.mark.group(13)
def test_greedy_tokens_are_the_argmax_of_the_logits(world: World) -> None:
    rng = random.Random(4)
    tokens, logits = world.make(output="tokens"), world.make(output="logits")
    texts = {slot: [rng.randrange(64) for _ in range(3 + 4 * slot)] for slot in (2, 0, 3)}
    rows = [PrefillRow(slot, text) for slot, text in texts.items()]
    for step in range(12):
        made = tokens.prefill(rows) if step == 0 else tokens.decode(rows)
        best = (logits.prefill(rows) if step == 0 else logits.decode(rows)).logits.argmax(axis=1)
        assert said(tokens, made, 3).tolist() == best.tolist()
        for text, token in zip(texts.values(), best, strict=True):
            text.append(int(token))
        rows = [DecodeRow(slot, text[-1], len(text) - 1) for slot, text in texts.items()]
    for backend in (tokens, logits):
        backend.close()


# -- the mapping, and what top_p means -----------------------------------------------------------------------


def drawn(**params: Any) -> SamplingParams:
    return SamplingParams(do_sample=True, **params)


@pytest.mark.group(14)
@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        drawn(),
        drawn(temperature=0.7, seed=3),
        drawn(temperature=1e300),
        drawn(top_k=1),
        drawn(top_k=5, top_p=0.5),
        drawn(top_p=1e-300),
    ],
    ids=str,
)
def test_the_device_takes_every_row_that_parameters_become(backend: Backend, params: SamplingParams) -> None:
    row = device_sampling(params, backend.info.max_top_k, approximate_top_p=True)
    said(backend, backend.prefill([PrefillRow(1, [1, 2, 3], sampling=row)]), 1)
    said(backend, backend.decode([DecodeRow(1, 4, 3, row)]), 1)


def _kept_by_the_device(probabilities: np.ndarray, top_p: float) -> set[int]:
    """Falling probabilities: a token stays while the sum with it is at most ``top_p``; the first always."""
    return {0, *np.flatnonzero(np.cumsum(probabilities) <= top_p).tolist()}


def _kept_by_transformers(probabilities: np.ndarray, top_p: float) -> set[int]:
    from transformers import TopPLogitsWarper

    scores = TopPLogitsWarper(top_p)(None, torch.tensor(np.log(probabilities))[None])
    return set(torch.isfinite(scores[0]).nonzero().flatten().tolist())


#: Of four tokens with these probabilities: top_p -> what the device keeps, and what transformers does.
PROBABILITIES = np.array([0.5, 0.3, 0.15, 0.05], np.float32)
KEPT = [(0.6, {0}, {0, 1}), (0.9, {0, 1}, {0, 1, 2}), (1.0, {0, 1, 2, 3}, {0, 1, 2, 3})]


@pytest.mark.group(14)
@pytest.mark.only(needs="draw")
@pytest.mark.parametrize(("top_p", "on_the_device", "in_transformers"), KEPT)
def test_top_p_on_the_device_leaves_out_the_token_that_crosses(
    subject: Subject, top_p: float, on_the_device: set[int], in_transformers: set[int]
) -> None:
    assert _kept_by_transformers(PROBABILITIES, top_p) == in_transformers
    places = {7: 0, 40: 1, 3: 2, 12: 3}
    logits = np.full((600, 64), -60.0, np.float32)
    logits[:, list(places)] = np.log(PROBABILITIES)
    assert subject.draw is not None
    seen = subject.draw(logits, [DeviceSampling(64, top_p, 1.0)] * len(logits))
    assert {places[int(token)] for token in seen} == on_the_device


def _support(logits: np.ndarray, wish: DeviceSampling) -> set[int]:
    """The tokens that a row may become, computed in another way than any backend does."""
    order = np.argsort(-logits.astype(np.float64), kind="stable")[: wish.top_k]
    weights = np.exp((logits[order].astype(np.float64) - logits.max()) / wish.temperature)
    kept = _kept_by_the_device(weights / weights.sum(), wish.top_p)
    return {int(order[place]) for place in kept}


@pytest.mark.group(14)
@pytest.mark.parametrize(
    "params", [drawn(top_p=0.6), drawn(top_k=3), drawn(top_k=6, top_p=0.8, temperature=2.0)], ids=str
)
def test_draws_stay_within_what_the_row_allows_and_use_all_of_it(
    backend: Backend, alone: Alone, params: SamplingParams
) -> None:
    row = device_sampling(params, backend.info.max_top_k, approximate_top_p=True)
    text = [3, 1, 4, 1, 5]
    allowed = _support(alone(text)[-1], row)
    assert len(allowed) > 1
    seen: set[int] = set()
    for _ in range(50):
        rows = [PrefillRow(slot, text, sampling=row) for slot in range(B)]
        seen |= set(said(backend, backend.prefill(rows), B).tolist())
        backend.release(range(B))
    assert seen <= allowed
    likely = [t for t in allowed if _share(alone(text)[-1], row, t) > 0.05]
    assert set(likely) <= seen


def _share(logits: np.ndarray, wish: DeviceSampling, token: int) -> float:
    """The probability of ``token`` among those that the row allows."""
    allowed = sorted(_support(logits, wish))
    weights = np.exp((logits[allowed].astype(np.float64) - logits.max()) / wish.temperature)
    return float(weights[allowed.index(token)] / weights.sum())


@pytest.mark.group(15)
def test_the_parameters_of_a_row_do_not_reach_its_neighbours(backend: Backend, alone: Alone) -> None:
    """Greedy, very hot, top-k 2 and a narrow top-p side by side, in changing order."""
    rng = random.Random(8)
    hot = DeviceSampling(backend.info.max_top_k, 1.0, 100.0)
    wishes = {0: GREEDY, 1: hot, 2: DeviceSampling(2, 1.0, 3.0), 3: DeviceSampling(64, 0.4, 1.0)}
    hot_places: set[int] = set()
    for _ in range(3):
        texts = {slot: [rng.randrange(64) for _ in range(2 + slot)] for slot in wishes}
        while len(texts[3]) < T:
            fresh = len(texts[0]) == 2
            order = rng.sample(sorted(wishes), B)
            if fresh:
                output = backend.prefill([PrefillRow(s, texts[s], sampling=wishes[s]) for s in order])
            else:
                rows = [DecodeRow(s, texts[s][-1], len(texts[s]) - 1, wishes[s]) for s in order]
                output = backend.decode(rows)
            for slot, token in zip(order, said(backend, output, B).tolist(), strict=True):
                logits = alone(texts[slot])[-1]
                if slot == 1:
                    hot_places.add(int((logits > logits[token]).sum()))
                else:
                    # A margin for a probability that lies on the threshold itself.
                    near = replace(wishes[slot], top_p=min(1.0, wishes[slot].top_p + 1e-4))
                    assert token in _support(logits, near), f"slot {slot}"
            for text in texts.values():
                text.append(rng.randrange(64))
        backend.release(range(B))
    assert len(hot_places) > 15  # it was hot indeed


# -- what needs the host -------------------------------------------------------------------------------------

NEEDS_THE_HOST: list[tuple[dict[str, Any], str]] = [
    ({"sampling": SamplingParams(repetition_penalty=1.2)}, "repetition_penalty"),
    ({"sampling": SamplingParams(frequency_penalty=0.5)}, "frequency_penalty"),
    ({"sampling": drawn(typical_p=0.5)}, "typical_p"),
    ({"sampling": drawn(top_p=0.9)}, "top_p"),
    ({"sampling": SamplingParams(top_n_tokens=3)}, "top_n_tokens"),
    ({"prompt_logprobs": True}, "prompt_logprobs"),
    ({"grammar": Grammar("regex", "a+")}, "grammar"),
]


@pytest.mark.group(16)
@pytest.mark.parametrize(
    ("asks", "name"), NEEDS_THE_HOST, ids=lambda value: value if type(value) is str else ""
)
def test_what_needs_the_host_is_refused_by_name(backend: Backend, asks: dict[str, Any], name: str) -> None:
    request = GenerationRequest((1, 2, 3), 3, 4, **asks)
    with pytest.raises(errors.ValidationError, match=f"`{name}`"):
        check(request, backend.info)
    check(request, replace(backend.info, output="logits", max_top_k=0))


@pytest.mark.group(16)
def test_more_candidates_than_the_device_has_are_refused(backend: Backend) -> None:
    most = backend.info.max_top_k
    check(GenerationRequest((1, 2, 3), 3, 4, sampling=drawn(top_k=most)), backend.info)
    with pytest.raises(errors.ValidationError, match=r"`top_k`.*" + str(most)):
        check(GenerationRequest((1, 2, 3), 3, 4, sampling=drawn(top_k=most + 1)), backend.info)
