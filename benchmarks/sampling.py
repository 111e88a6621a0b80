"""Milliseconds to choose the tokens of 16 rows: the engine, and transformers' processors row by row.

    python benchmarks/sampling.py [--rounds 7]

Synthetic logits, normal with deviation 3. *Warped* rows have temperature 0.8, top_k 50, top_p 0.9 and a
repetition penalty over 128 tokens of text. One thread; the ways alternate in one run; medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from report import Table, write_bars
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from neuron_server.engine.penalty import TokenCounts
from neuron_server.engine.sampling import SampleRow, sample
from neuron_server.request import SamplingParams

BATCH, TEXT_TOKENS = 16, 128
WARPED = SamplingParams(do_sample=True, temperature=0.8, top_k=50, top_p=0.9, repetition_penalty=1.1, seed=1)
Logits = npt.NDArray[np.float32]


def ours(params: SamplingParams, text: npt.NDArray[np.int64]) -> Callable[[Logits], None]:
    """The engine's pass; penalties count incrementally, so the counts are made beforehand."""
    counts = [TokenCounts(row.tolist()) if params.do_sample else None for row in text]

    def way(logits: Logits) -> None:
        sample(logits, [SampleRow(params, index, counts[index]) for index in range(BATCH)])

    return way


def transformers_way(params: SamplingParams, text: npt.NDArray[np.int64]) -> Callable[[Logits], None]:
    """What a loop over rows with the library's processors does, log-probability included."""
    processors = LogitsProcessorList()
    if params.do_sample:
        processors += [
            RepetitionPenaltyLogitsProcessor(params.repetition_penalty),
            TemperatureLogitsWarper(params.temperature),
            TopKLogitsWarper(params.top_k),
            TopPLogitsWarper(params.top_p),
        ]
    rows = torch.from_numpy(text)

    def way(logits: Logits) -> None:
        for index, row in enumerate(torch.from_numpy(logits)):
            scores = processors(rows[index : index + 1], row[None])
            logprobs = torch.log_softmax(scores, dim=-1)
            chosen = torch.multinomial(logprobs.exp(), 1) if params.do_sample else scores.argmax(-1)
            logprobs.view(-1)[chosen.view(-1)].item()

    return way


def measure(vocab: int, params: SamplingParams, rounds: int) -> dict[str, float]:
    """Median ms a step of each way."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (BATCH, vocab)).astype(np.float32)  # (B, V)
    text = rng.integers(0, vocab, (BATCH, TEXT_TOKENS))  # (B, tokens)
    ways = {"engine": ours(params, text), "transformers": transformers_way(params, text)}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            own = logits.copy()
            start = time.perf_counter()
            way(own)
            times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)  # with two, rows this short are slower, and much slower on a shared machine
    table = Table("rows", "V", "engine ms", "transformers ms", "ratio")
    bars = {}
    for name, params in (("greedy", SamplingParams()), ("warped", WARPED)):
        for vocab in (50_257, 151_936):
            ms = measure(vocab, params, rounds)
            table.add(
                name, vocab, ms["engine"], ms["transformers"], f"{ms['transformers'] / ms['engine']:.1f}"
            )
            bars[f"{name} {vocab // 1000}k"] = ms
    print(table)
    write_bars("sampling", bars, "ms to choose 16 tokens (this machine, this run)")


if __name__ == "__main__":
    main()
