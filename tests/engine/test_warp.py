"""Every warper against its transformers namesake, computed in float64 so that the comparison is exact."""

from itertools import product

import numpy as np
import pytest
import torch
from transformers.generation.logits_process import (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from neuron_server.engine.candidates import row_mass, top_candidates
from neuron_server.engine.warp import Choice, DrawRow, draw
from neuron_server.request import SamplingParams

VOCAB = 6000


def reference(row: np.ndarray, p: SamplingParams) -> np.ndarray:
    """Log-probabilities (V,) after the warpers; -inf where removed."""
    scores = torch.from_numpy(row.astype(np.float64))[None]
    for active, warper in (
        (p.temperature != 1.0, lambda: TemperatureLogitsWarper(p.temperature)),
        (p.top_k != 0, lambda: TopKLogitsWarper(p.top_k)),
        (p.top_p < 1.0, lambda: TopPLogitsWarper(p.top_p)),
        (p.typical_p < 1.0, lambda: TypicalLogitsWarper(p.typical_p)),
    ):
        if active:
            scores = warper()(None, scores)
    return torch.log_softmax(scores, -1)[0].numpy()


def wish(row: np.ndarray, p: SamplingParams, uniform: float | None = 0.5) -> DrawRow:
    entropy = p.typical_p < 1.0
    scratch = np.empty_like(row)
    return DrawRow(p, uniform, row_mass(row, scratch, temperature=p.temperature, entropy=entropy))


def widening(row: np.ndarray, p: SamplingParams, uniform: float | None, start: int = 64) -> Choice:
    width = start
    while True:
        choice = draw(top_candidates(row[None], width), [wish(row, p, uniform)])[0]
        if choice is not None:
            return choice
        assert width < len(row), "the whole row must always suffice"
        width *= 4


def row_of(seed: int, scale: float) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(VOCAB) * scale).astype(np.float32)


CASES = [
    SamplingParams(do_sample=True, temperature=t, top_k=k, top_p=p, typical_p=m, top_n_tokens=VOCAB)
    for t, k, p, m in product((0.6, 1.0, 1.7), (0, 1, 50, 300, 10_000), (1.0, 0.9, 0.2), (1.0, 0.95, 0.3))
]


@pytest.mark.parametrize("scale", [0.5, 3.0, 8.0])
def test_kept_set_and_logprobs_are_those_of_transformers(scale: float) -> None:
    for number, params in enumerate(CASES):
        row = row_of(number, scale)
        expected = reference(row, params)
        choice = draw(top_candidates(row[None], VOCAB), [wish(row, params)])[0]
        assert choice is not None
        kept = {top.token_id: top.logprob for top in choice.top_tokens}
        assert set(kept) == set(np.flatnonzero(expected > -np.inf).tolist()), params
        for token, logprob in kept.items():
            assert logprob == pytest.approx(expected[token], abs=1e-5)


@pytest.mark.parametrize("scale", [0.5, 3.0, 8.0])
def test_few_candidates_give_exactly_what_the_whole_row_gives(scale: float) -> None:
    rng = np.random.default_rng(5)
    for number, params in enumerate(CASES):
        row = row_of(number, scale)
        params = SamplingParams(
            True, params.temperature, params.top_k, params.top_p, params.typical_p, top_n_tokens=5
        )
        number_drawn = float(rng.random())
        whole = draw(top_candidates(row[None], VOCAB), [wish(row, params, number_drawn)])[0]
        assert widening(row, params, number_drawn) == whole, params


@pytest.mark.parametrize("scale", [0.5, 3.0, 8.0])
@pytest.mark.parametrize("uniform", [0.0, 1e-9, 0.3, 0.999999, 1 - 2**-53])
def test_the_draw_inverts_the_cumulative_distribution(scale: float, uniform: float) -> None:
    for number, params in enumerate(CASES):
        row = row_of(number, scale)
        expected = np.exp(reference(row, params))
        order = np.lexsort((np.arange(VOCAB), -row))
        running = np.cumsum(expected[order])
        choice = widening(row, params, uniform)
        place = int(np.flatnonzero(order == choice.token_id)[0])
        assert expected[choice.token_id] > 0.0
        assert running[place] >= uniform - 1e-6
        assert running[place] - expected[choice.token_id] <= uniform + 1e-6


def test_top_k_keeps_ties() -> None:
    row = np.zeros(VOCAB, np.float32)
    row[[10, 20, 30]] = [2.0, 1.0, 1.0]
    params = SamplingParams(do_sample=True, top_k=2, top_n_tokens=10)
    choice = widening(row, params, 0.0)
    assert [top.token_id for top in choice.top_tokens] == [10, 20, 30]


def test_ties_across_the_whole_row_are_drawn_in_the_order_of_ids() -> None:
    row = np.zeros(1000, np.float32)
    for uniform in (0.0, 0.1234, 0.9999):
        choice = widening(row, SamplingParams(do_sample=True, top_k=3), uniform)
        assert choice.token_id == int(uniform * 1000)


def test_a_row_is_not_changed_by_its_neighbours() -> None:
    rows = np.stack([row_of(i, 3.0) for i in range(len(CASES))])
    numbers = np.random.default_rng(1).random(len(CASES)).tolist()
    wishes = [wish(row, p, u) for row, p, u in zip(rows, CASES, numbers, strict=True)]
    together = draw(top_candidates(rows, 200), wishes)
    for i, choice in enumerate(together):
        assert choice == draw(top_candidates(rows[i : i + 1], 200), wishes[i : i + 1])[0]


def test_top_tokens_leave_out_what_is_masked_or_removed() -> None:
    row = np.full(VOCAB, -np.inf, np.float32)
    row[[5, 7]] = [0.0, 1.0]
    greedy = widening(row, SamplingParams(top_n_tokens=5), None)
    assert greedy.token_id == 7
    assert [top.token_id for top in greedy.top_tokens] == [7, 5]
    cut = widening(row, SamplingParams(do_sample=True, top_k=1, top_n_tokens=5), 0.9)
    assert [(top.token_id, top.logprob) for top in cut.top_tokens] == [(7, 0.0)]
