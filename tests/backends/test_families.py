"""Every family promised exact: greedy tokens equal ``transformers.generate``, one prompt at a time."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from backends.family_models import CONFIGS, VOCAB, generate, save_tiny

from neuron_server.backends.cpu import CpuBackend
from neuron_server.backends.families import VARIANTS
from neuron_server.config import GeneratorConfig
from neuron_server.models import EXACT_FAMILIES, read_model
from neuron_server.shape import StaticShape

SLOTS, LENGTH, LONGEST_PROMPT = 4, 32, 20


@pytest.fixture(scope="module", params=CONFIGS, ids=lambda key: " ".join(key).replace(" ", "-"))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Any]:
    """(family, directory, the same model in transformers)"""
    family, variant = request.param
    path = tmp_path_factory.mktemp(family)
    return family, path, save_tiny(family, variant, path)


@pytest.fixture(scope="module")
def requests(case: Any) -> list[tuple[list[int], int]]:
    """Random lengths; the corners (one token, the longest prompt, the last possible token) are among them."""
    rng = random.Random(7)
    sizes = [(1, 5), (1, 1), (2, LENGTH - 2), (LONGEST_PROMPT, LENGTH - LONGEST_PROMPT), (LONGEST_PROMPT, 1)]
    while len(sizes) < 16:
        prompt = rng.randint(1, LONGEST_PROMPT)
        sizes.append((prompt, rng.randint(1, min(10, LENGTH - prompt))))
    return [([rng.randrange(VOCAB) for _ in range(prompt)], new) for prompt, new in sizes]


@pytest.fixture(scope="module")
def expected(case: Any, requests: Any) -> list[list[int]]:
    _, _, model = case
    return [generate(model, prompt, new) for prompt, new in requests]


def _load(path: Path, **settings: Any) -> CpuBackend:
    return CpuBackend.load(
        GeneratorConfig(
            model_path=str(path), uds_path="", batch_size=SLOTS, max_length=LENGTH,
            max_prompt_tokens=LONGEST_PROMPT, poison=True, **settings,
        )
    )  # fmt: skip


@pytest.mark.parametrize("mode", ["insert", "rebuild"])
def test_tokens_equal_generate(case: Any, requests: Any, expected: Any, serve: Any, mode: str) -> None:
    _, path, _ = case
    assert serve(_load(path, prefill_mode=mode), requests, 1) == expected


def test_strict_tokens_equal_generate(case: Any, requests: Any, expected: Any, serve: Any) -> None:
    _, path, _ = case
    assert serve(_load(path, strict=True), requests, 2) == expected


def test_facts_give_the_size_of_the_cache(case: Any) -> None:
    _, path, _ = case
    facts = read_model(path)
    backend = _load(path)
    assert facts.exact
    assert facts.cache_bytes(StaticShape(SLOTS, LENGTH), 4) == backend._cache.nbytes
    assert facts.vocab_size == backend.info.vocab_size


def test_every_promised_family_and_variant_is_tried() -> None:
    assert set(VARIANTS) == set(EXACT_FAMILIES)
    assert {(family, v) for family, variants in VARIANTS.items() for v in variants} == set(CONFIGS)
