import math

import numpy as np
import pytest

from neuron_server.engine.penalty import TokenCounts
from neuron_server.engine.sampling import SampleRow, sample
from neuron_server.engine.warp import Choice
from neuron_server.request import SamplingParams

VOCAB = 9000


def logits_of(seed: int, n: int = 1, vocab: int = VOCAB, scale: float = 3.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((n, vocab)) * scale).astype(np.float32)


def some_row(number: int) -> SampleRow:
    """A row of every kind, chosen by number."""
    rng = np.random.default_rng(number)
    params = SamplingParams(
        do_sample=number % 4 != 0,
        temperature=float(rng.choice([0.7, 1.0, 1.3])),
        top_k=int(rng.choice([0, 0, 5, 50, 500])),
        top_p=float(rng.choice([1.0, 0.9, 0.3])),
        typical_p=float(rng.choice([1.0, 1.0, 0.9])),
        repetition_penalty=float(rng.choice([1.0, 1.2])),
        frequency_penalty=float(rng.choice([0.0, 0.5])),
        seed=int(rng.integers(0, 2**63)),
        top_n_tokens=int(rng.choice([0, 0, 4, 200])),
    )
    return SampleRow(params, int(rng.integers(0, 500)), TokenCounts(rng.integers(0, VOCAB, 40).tolist()))


def chi_square_limit(freedom: int) -> float:
    """Upper 0.1 % point (Wilson and Hilferty)."""
    return float(freedom * (1 - 2 / (9 * freedom) + 3.09 * math.sqrt(2 / (9 * freedom))) ** 3)


def test_the_same_alone_and_among_fifteen_neighbours() -> None:
    for first in range(0, 160, 16):
        rows = [some_row(number) for number in range(first, first + 16)]
        logits = logits_of(first, 16)
        together = sample(logits.copy(), rows)
        for i, row in enumerate(rows):
            assert sample(logits[i : i + 1].copy(), [row]) == [together[i]]
        order = np.random.default_rng(first).permutation(16)
        shuffled = sample(logits[order].copy(), [rows[i] for i in order])
        assert shuffled == [together[i] for i in order]


@pytest.mark.parametrize("vocab", [3, 50, 1000, 70_000])
def test_greedy_rows_are_the_same_alone_and_together(vocab: int) -> None:
    logits = logits_of(8, 16, vocab)
    rows = [SampleRow(SamplingParams(top_n_tokens=2 if i == 5 else 0), 0) for i in range(16)]
    together = sample(logits.copy(), rows)
    assert together == [sample(logits[i : i + 1].copy(), [rows[i]])[0] for i in range(16)]


def test_greedy_is_the_argmax_with_its_log_softmax() -> None:
    logits = logits_of(1, 16)
    logits[3, 77] = logits[3, 500] = 30.0  # a tie: the lowest id
    expected = logits.astype(np.float64)
    expected -= np.log(np.exp(expected).sum(axis=1, keepdims=True))
    chosen = sample(logits.copy(), [SampleRow(SamplingParams(), 0)] * 16)
    for i, choice in enumerate(chosen):
        assert choice is not None
        assert choice.token_id == expected[i].argmax()
        assert choice.logprob == pytest.approx(expected[i].max(), abs=1e-5)
        assert choice.logprob == np.float32(choice.logprob)
        assert choice.top_tokens == ()
    assert chosen[3] is not None
    assert chosen[3].token_id == 77


def test_greedy_takes_no_warpers_but_penalties() -> None:
    logits = logits_of(2)
    best = int(logits.argmax())
    warpers = SamplingParams(temperature=0.3, top_k=2, top_p=0.1, typical_p=0.1)
    plain = sample(logits.copy(), [SampleRow(SamplingParams(), 0)])
    assert sample(logits.copy(), [SampleRow(warpers, 0)]) == plain
    penalty = SamplingParams(repetition_penalty=100.0)
    penalised = sample(logits.copy(), [SampleRow(penalty, 0, TokenCounts([best]))])[0]
    assert penalised is not None
    assert penalised.token_id == logits[0].argsort()[-2]


def test_greedy_with_top_tokens_agrees_with_greedy_without() -> None:
    logits = logits_of(3)
    plain = sample(logits.copy(), [SampleRow(SamplingParams(), 0)])[0]
    tops = sample(logits.copy(), [SampleRow(SamplingParams(top_n_tokens=3), 0)])[0]
    assert plain is not None
    assert tops is not None
    assert (tops.token_id, tops.logprob) == (plain.token_id, plain.logprob)
    assert tops.top_tokens[0].token_id == tops.token_id
    assert tops.top_tokens[0].logprob == tops.logprob
    assert [top.token_id for top in tops.top_tokens] == logits[0].argsort()[::-1][:3].tolist()


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(do_sample=True),
        SamplingParams(do_sample=True, temperature=0.6),
        SamplingParams(do_sample=True, temperature=1.5, top_k=20),
    ],
)
def test_draws_follow_the_exact_distribution(params: SamplingParams) -> None:
    draws, vocab = 4000, 40
    row = logits_of(4, 1, vocab, 1.0)
    z = row[0].astype(np.float64) / params.temperature
    if params.top_k:
        z[z < np.sort(z)[-params.top_k]] = -np.inf
    expected = np.exp(z - z.max())
    expected *= draws / expected.sum()
    counts = np.zeros(vocab)
    for start in range(0, draws, 500):
        batch = np.repeat(row, 500, axis=0)
        for choice in sample(batch, [SampleRow(params, start + i) for i in range(500)]):
            assert choice is not None
            counts[choice.token_id] += 1
    seen = expected > 0
    assert counts[~seen].sum() == 0
    chi_square = ((counts[seen] - expected[seen]) ** 2 / expected[seen]).sum()
    assert chi_square < chi_square_limit(int(seen.sum()) - 1)


def test_draws_beyond_the_first_candidates_are_reached() -> None:
    """An almost flat row: most of its mass lies outside any small candidate set."""
    logits = logits_of(5, 1, VOCAB, 0.1)
    drawn = {
        choice.token_id
        for i in range(60)
        for choice in sample(logits.copy(), [SampleRow(SamplingParams(do_sample=True, seed=i), 0)])
        if choice is not None
    }
    assert len(drawn) > 55


def test_seed_and_index_decide_and_nothing_else() -> None:
    logits = logits_of(6, 1, 50, 0.5)
    params = [SamplingParams(do_sample=True, seed=seed) for seed in (1, 1, 2)]

    def tokens(p: SamplingParams) -> list[int]:
        chosen = sample(np.repeat(logits, 30, axis=0), [SampleRow(p, i) for i in range(30)])
        return [choice.token_id for choice in chosen if choice is not None]

    first, same, other = map(tokens, params)
    assert first == same != other


@pytest.mark.parametrize("bad", ["nan", "inf", "masked"])
@pytest.mark.parametrize(
    "params", [SamplingParams(), SamplingParams(top_n_tokens=2), SamplingParams(do_sample=True, top_k=5)]
)
def test_a_row_without_a_distribution_has_no_choice_and_spoils_no_other(
    bad: str, params: SamplingParams
) -> None:
    logits = logits_of(7, 3)
    alone = sample(logits[:1].copy(), [SampleRow(params, 0)])
    if bad == "masked":
        logits[1] = -np.inf
    else:
        logits[1, 4000] = float(bad)
    chosen = sample(logits, [SampleRow(params, 0)] * 3)
    assert chosen[0] == alone[0] is not None
    assert chosen[1] is None
    assert isinstance(chosen[2], Choice)
