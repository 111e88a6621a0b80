import numpy as np
import pytest

from neuron_server.engine.candidates import row_mass, top_candidates


def reference(row: np.ndarray) -> list[int]:
    return sorted((i for i in range(len(row)) if row[i] > -np.inf), key=lambda i: (-row[i], i))


@pytest.mark.parametrize("vocab", [1, 7, 128, 511, 512, 1024, 1025, 5003])
@pytest.mark.parametrize("at_least", [1, 16, 128])
def test_candidates_are_the_likeliest_in_order(vocab: int, at_least: int) -> None:
    rng = np.random.default_rng(vocab)
    logits = rng.standard_normal((5, vocab)).astype(np.float32)
    found = top_candidates(logits, at_least)
    for i, row in enumerate(logits):
        count = int((found.logits[i] > -np.inf).sum())
        assert count >= min(at_least, vocab)
        assert found.ids[i, :count].tolist() == reference(row)[:count]
        assert found.logits[i, :count].tolist() == row[found.ids[i, :count]].tolist()
        assert found.complete[i] == (count == vocab)
        assert found.peak[i] == row.max()


def test_few_are_found_beyond_those_asked_for() -> None:
    logits = np.random.default_rng(0).standard_normal((16, 50_257)).astype(np.float32)
    assert top_candidates(logits, 128).ids.shape[1] < 200


def test_ties_are_never_cut_and_stand_in_the_order_of_ids() -> None:
    logits = np.random.default_rng(0).integers(0, 4, (3, 4000)).astype(np.float32)
    found = top_candidates(logits, 8)
    for i, row in enumerate(logits):
        count = int((found.logits[i] > -np.inf).sum())
        assert found.ids[i, :count].tolist() == np.flatnonzero(row == 3).tolist()
        assert not found.complete[i]


def test_zero_and_minus_zero_are_equal() -> None:
    logits = np.array([[0.0, -0.0, 0.0, -0.0, -1.0]], np.float32)
    assert top_candidates(logits, 5).ids.tolist() == [[0, 1, 2, 3, 4]]


def test_masked_tokens_are_no_candidates() -> None:
    logits = np.full((2, 5000), -np.inf, np.float32)
    logits[0, [17, 4000]] = [-3.0e38, 2.0]
    logits[1] = np.arange(5000)
    found = top_candidates(logits, 64)
    assert found.complete.tolist() == [True, False]
    assert found.ids[0, :2].tolist() == [4000, 17]
    assert (found.logits[0, 2:] == -np.inf).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_that_is_not_finite_shows_in_its_peak_and_spoils_no_other(bad: float) -> None:
    logits = np.random.default_rng(0).standard_normal((2, 3000)).astype(np.float32)
    alone = top_candidates(logits[1:].copy(), 16)
    logits[0, 2999] = bad
    found = top_candidates(logits, 16)
    assert not np.isfinite(found.peak[0])
    assert found.ids[1, : alone.ids.shape[1]].tolist() == alone.ids[0].tolist()


@pytest.mark.parametrize("temperature", [1e-50, 0.01, 0.7, 1.0, 5.0])
def test_mass_and_entropy_of_a_row(temperature: float) -> None:
    row = (np.random.default_rng(1).standard_normal(2000) * 3).astype(np.float32)
    row[5] = -np.inf
    mass = row_mass(row.copy(), np.empty(2000, np.float32), temperature=temperature, entropy=True)
    z = (row.astype(np.float64) - row.max()) / temperature
    p = np.exp(z) / np.exp(z).sum()
    assert mass.total == pytest.approx(np.exp(z).sum(), rel=1e-5)
    assert mass.entropy == pytest.approx(-(p[p > 0] * np.log(p[p > 0])).sum(), abs=1e-5)
