"""Milliseconds of the host for a step of 16 rows, besides the model: tokens taken, or sampled from logits.

    python benchmarks/device_sampling.py [--steps 200]

The backend of both computes nothing: it hands over the same logits, or the same tokens, again and again. So
what is measured is the whole of ``Engine.step`` on the host. One thread; the kinds alternate; medians.
Copying logits from a device is not in it: measured is what the host does, not what Inferentia2 does.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence

import numpy as np
from report import Table, write_bars

from neuron_server.backend import BackendInfo, DecodeRow, Output, OutputKind, PrefillRow
from neuron_server.engine.engine import Engine, Joiner
from neuron_server.request import GenerationRequest, SamplingParams
from neuron_server.shape import StaticShape

BATCH, PROMPT_TOKENS = 16, 128
VOCABULARIES = (1_000, 50_257, 128_256)
GREEDY = SamplingParams()
SAMPLED = SamplingParams(do_sample=True, temperature=0.8, top_k=50, seed=1)


class Idle:
    """A ``Backend`` without a model."""

    def __init__(self, output: OutputKind, vocab: int, length: int) -> None:
        width = 256 if output == "tokens" else 0
        shape = StaticShape(BATCH, length)
        self.info = BackendInfo(shape, length - 1, vocab, output=output, max_top_k=width)
        self._tokens = np.arange(BATCH, dtype=np.int64)  # (B,)
        self._logits = np.random.default_rng(0).normal(0, 3, (BATCH, vocab)).astype(np.float32)  # (B, V)

    def prefill(self, rows: Sequence[PrefillRow]) -> Output:
        return self._output(len(rows))

    def decode(self, rows: Sequence[DecodeRow]) -> Output:
        return self._output(len(rows))

    def release(self, slots: Sequence[int]) -> None:
        pass

    def close(self) -> None:
        pass

    def _output(self, rows: int) -> Output:
        if self.info.samples:
            return Output(self._logits[:rows, :0], tokens=self._tokens[:rows])
        return Output(self._logits[:rows])


def measure(vocab: int, params: SamplingParams, steps: int) -> dict[str, float]:
    """Median ms a step of each kind of output."""
    engines: dict[str, Engine[int]] = {}
    length = PROMPT_TOKENS + steps + 8
    request = GenerationRequest((1,) * PROMPT_TOKENS, PROMPT_TOKENS, steps + 7, params)
    for output in ("logits", "tokens"):
        engines[output] = Engine(Idle(output, vocab, length))
        engines[output].place([Joiner(key, request, 0.0) for key in range(BATCH)])
    times: dict[str, list[float]] = {output: [] for output in engines}
    for _ in range(steps):
        for output, engine in engines.items():
            start = time.perf_counter()
            engine.step()
            times[output].append(time.perf_counter() - start)
    return {output: statistics.median(took[5:]) * 1000 for output, took in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=200)
    steps = parser.parse_args().steps
    table = Table("rows", "V", "sampled from logits", "tokens taken")
    bars = {}
    for name, params in (("greedy", GREEDY), ("top_k 50", SAMPLED)):
        for vocab in VOCABULARIES:
            ms = bars[f"{name} {vocab // 1000}k"] = measure(vocab, params, steps)
            table.add(name, vocab, f"{ms['logits']:.2f} ms", f"{ms['tokens']:.3f} ms")
    print(table)
    write_bars("device_sampling", bars, "host ms a step of 16 rows (this machine, this run)")


if __name__ == "__main__":
    main()
