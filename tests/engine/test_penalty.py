import numpy as np
import pytest
import torch
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

from neuron_server.engine.penalty import TokenCounts, has_penalty, penalise
from neuron_server.request import SamplingParams

VOCAB = 300


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_counts_grow_token_by_token_as_if_counted_at_once(rng: np.random.Generator) -> None:
    tokens = rng.integers(0, VOCAB, 500).tolist()
    grown = TokenCounts(tokens[:3])
    for token in tokens[3:]:
        grown.add(token)
    at_once = TokenCounts(tokens)
    assert grown.total == at_once.total == 500
    assert dict(zip(grown.ids.tolist(), grown.counts.tolist(), strict=True)) == dict(
        zip(at_once.ids.tolist(), at_once.counts.tolist(), strict=True)
    )


@pytest.mark.parametrize("penalty", [0.7, 1.1, 2.0])
def test_repetition_penalty_is_that_of_transformers(rng: np.random.Generator, penalty: float) -> None:
    row = rng.standard_normal(VOCAB).astype(np.float32)
    tokens = rng.integers(0, VOCAB, 80).tolist()
    expected = RepetitionPenaltyLogitsProcessor(penalty)(
        torch.tensor([tokens]), torch.from_numpy(row.copy())[None]
    )
    penalise(row, TokenCounts(tokens), SamplingParams(repetition_penalty=penalty))
    assert np.allclose(row, expected[0].numpy(), atol=1e-6)


def test_frequency_penalty_is_relative_as_in_tgi() -> None:
    row = np.zeros(5, np.float32)
    penalise(row, TokenCounts([3, 3, 1, 3]), SamplingParams(frequency_penalty=2.0))
    assert row.tolist() == [0.0, -0.5, 0.0, -1.5, 0.0]


def test_repetition_comes_before_frequency() -> None:
    row = np.array([4.0, -4.0], np.float32)
    penalise(row, TokenCounts([0, 1]), SamplingParams(repetition_penalty=2.0, frequency_penalty=1.0))
    assert row.tolist() == [4.0 / 2 - 0.5, -4.0 * 2 - 0.5]


def test_neutral_values_are_no_penalty() -> None:
    assert not has_penalty(SamplingParams(temperature=0.5))
    assert has_penalty(SamplingParams(repetition_penalty=1.2))
    assert has_penalty(SamplingParams(frequency_penalty=-0.1))
