"""The models the benchmarks run: the demo model, and a randomly initialised GPT-2 of 124M parameters.

Neither has an EOS id here, so every generation is exactly as long as it was asked to be.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

P = ParamSpec("P")
T = TypeVar("T")

DEMO_MODEL = Path(__file__).parents[1] / "neuron_server" / "demo_model"


def alone(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call ``function`` in a fresh process: how many threads a model gets is decided once per process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args, **kwargs).result()


def endless_demo(folder: Path) -> Path:
    """A copy of the demo model that never ends by itself."""
    path = folder / "demo"
    shutil.copytree(DEMO_MODEL, path)
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        settings = json.loads((path / name).read_text())
        for key in ("eos_token_id", "eos_token"):
            if key in settings:
                settings[key] = None
        (path / name).write_text(json.dumps(settings, indent=1))
    return path


def random_gpt2(folder: Path) -> Path:
    """GPT-2 124M with random weights (seed 0) and a byte-level BPE of 50,257 made-up merges."""
    path = folder / "gpt2-124m-random"
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(eos_token_id=None, bos_token_id=None))
    model.generation_config.eos_token_id = None
    model.save_pretrained(path)
    vocabulary, merges = _made_up_merges(50_257)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(path)
    return path


def _made_up_merges(size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Every byte, then pairs and triples of them in a fixed order until the vocabulary is full."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = [c for c in alphabet if c.isascii()] + ["Ġ"]
    vocabulary = {c: i for i, c in enumerate(alphabet)}
    merges: list[tuple[str, str]] = []
    pairs = [a + b for a, b in itertools.product(letters, letters)]
    candidates = itertools.chain(
        itertools.product(letters, letters),
        itertools.product(pairs, letters),
        itertools.product(pairs, pairs),
    )
    for left, right in candidates:
        if len(vocabulary) == size:
            break
        if left + right not in vocabulary:
            vocabulary[left + right] = len(vocabulary)
            merges.append((left, right))
    return vocabulary, merges
