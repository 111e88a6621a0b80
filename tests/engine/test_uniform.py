import numpy as np
import pytest

from neuron_server.engine.uniform import uniform


def test_depends_on_seed_and_index_only() -> None:
    alone = uniform([7], [3])[0]
    in_company = uniform([1, 7, 2**64 - 1], [9, 3, 0])[1]
    assert alone == in_company


def test_lies_in_the_unit_interval_and_is_even() -> None:
    numbers = uniform([42] * 100_000, range(100_000))
    assert numbers.min() >= 0.0
    assert numbers.max() < 1.0
    counts, _ = np.histogram(numbers, bins=100, range=(0, 1))
    chi_square = ((counts - 1000.0) ** 2 / 1000.0).sum()
    assert chi_square < 148.2  # 99 degrees of freedom, p = 0.001


@pytest.mark.parametrize("index", [0, 1, 100])
def test_neighbouring_seeds_are_unrelated(index: int) -> None:
    numbers = uniform(range(50_000), [index] * 50_000)
    counts, _ = np.histogram(numbers, bins=100, range=(0, 1))
    assert ((counts - 500.0) ** 2 / 500.0).sum() < 148.2
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.02


def test_neighbouring_indices_are_unrelated() -> None:
    numbers = uniform([0] * 50_000, range(50_000))
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.02


def test_is_the_same_on_every_machine_and_version() -> None:
    """Resuming on another replica relies on it. The first is splitmix64's own first output for seed 0."""
    numbers = uniform([0, 1, 2**64 - 1], [0, 0, 5]).tolist()
    assert numbers == [0xE220A8397B1DCDAF // 2**11 / 2**53, 0.7497482413580301, 0.05588332997080059]
