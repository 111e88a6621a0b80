"""How long running requests stand still when one more joins: *insert* against *rebuild*.

    python benchmarks/prefill_stall.py [--models demo gpt2] [--rounds 5]

15 requests run with 500 tokens each in their slots; one of 16 tokens joins. The stall of the others is the
time they stand still for that, on the bare engine loop.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path

from models import alone, endless_demo, random_gpt2
from report import Table, write_bars

from neuron_server.backend import PrefillMode
from neuron_server.backends import load_backend
from neuron_server.config import GeneratorConfig
from neuron_server.engine.engine import Engine, Joiner
from neuron_server.request import GenerationRequest

RUNNING, RUNNING_TOKENS, JOINING_TOKENS = 15, 500, 16


def request(tokens: int, seed: int) -> GenerationRequest:
    ids = tuple(random.Random(seed).randrange(300, 2000) for _ in range(tokens))
    return GenerationRequest(input_ids=ids, prompt_length=tokens, max_new_tokens=200)


def measure(path: Path, mode: PrefillMode, rounds: int) -> tuple[float, float]:
    """Medians over ``rounds``: seconds of a step of 15 rows, and of the stall when the 16th joins."""
    backend = load_backend(
        GeneratorConfig(
            model_path=str(path),
            uds_path="",
            batch_size=16,
            max_length=1024,
            max_prompt_tokens=512,
            prefill_mode=mode,
        )
    )
    engine: Engine[int] = Engine(backend)
    engine.place([Joiner(i, request(RUNNING_TOKENS, i), 0.0) for i in range(RUNNING)])
    steps, stalls = [], []
    for round_ in range(rounds):
        for _ in range(4):
            start = time.perf_counter()
            engine.step()
            steps.append(time.perf_counter() - start)
        start = time.perf_counter()
        engine.place([Joiner(1000 + round_, request(JOINING_TOKENS, 1000 + round_), 0.0)])
        stalls.append(time.perf_counter() - start)
        engine.step()
        engine.release(1000 + round_)
    return statistics.median(steps), statistics.median(stalls)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=("demo", "gpt2"), default=("demo", "gpt2"))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    make = {"demo": endless_demo, "gpt2": random_gpt2}
    modes: tuple[PrefillMode, ...] = ("insert", "rebuild")
    table = Table("model", "mode", "step ms", "stall ms", "stall in steps")
    bars: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models:
            path = make[name](Path(folder))
            for mode in modes:
                step, stall = alone(measure, path, mode, options.rounds)
                table.add(name, mode, step * 1e3, stall * 1e3, stall / step)
                bars.setdefault(name, {})[mode] = stall * 1e3
    print(table)
    write_bars(
        "prefill_stall", bars, "stall of 15 running requests when one joins, ms (this machine, this run)"
    )


if __name__ == "__main__":
    main()
