"""Tokens per second of the whole server, the bare engine loop and ``transformers.generate``, in one run.

    python benchmarks/throughput.py [--models demo gpt2] [--batch-sizes 1 4 16] [--rounds 3]

For each model and batch size B, B requests of 128 prompt and 128 new tokens (greedy, float32). The three ways
alternate within each round, on one machine, and medians are shown: only the ratios mean anything elsewhere.
*server* counts what B streaming HTTP clients receive, router and clients on the same cores; *bare loop* is
the engine and the CPU backend without a process border; *generate* is one batch of B rows without padding.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from models import alone, endless_demo, random_gpt2
from report import Table, write_bars
from serving import Server, streams
from transformers import AutoModelForCausalLM, AutoTokenizer

from neuron_server.backends import load_backend
from neuron_server.config import GeneratorConfig
from neuron_server.engine.plain import generate
from neuron_server.request import GenerationRequest, SamplingParams

PROMPT_TOKENS = NEW_TOKENS = 128
TEXT = "The built-in list type is a mutable sequence of objects, and this sentence goes on and on; " * 40


def prompts(path: Path, count: int) -> list[list[int]]:
    """``count`` different prompts of exactly ``PROMPT_TOKENS`` ids."""
    ids = AutoTokenizer.from_pretrained(path)(TEXT)["input_ids"]
    return [ids[i : i + PROMPT_TOKENS] for i in range(count)]


def generate_way(path: Path, batch: int) -> Callable[[], None]:
    """``transformers.generate``: its default dynamic cache, one batch of equal lengths."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    ids = torch.tensor(prompts(path, batch))  # (B, 128)

    def way() -> None:
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            pad_token_id=0,
        )
        assert out.shape[1] == PROMPT_TOKENS + NEW_TOKENS

    return way


def bare_way(path: Path, batch: int, length: int) -> Callable[[], None]:
    """Engine and CPU backend in this process, driven by a plain loop."""
    backend = load_backend(
        GeneratorConfig(
            model_path=str(path),
            uds_path="",
            batch_size=batch,
            max_length=length,
            max_prompt_tokens=length // 2,
        )
    )
    requests = [
        GenerationRequest(
            input_ids=tuple(ids), prompt_length=len(ids), max_new_tokens=NEW_TOKENS, sampling=SamplingParams()
        )
        for ids in prompts(path, batch)
    ]

    def way() -> None:
        answers = generate(backend, requests)
        assert all(len(events) == NEW_TOKENS for events in answers)

    return way


def server_way(server: Server, batch: int) -> Callable[[], None]:
    """B streaming clients of the real server; ``truncate`` makes every prompt exactly 128 tokens."""
    bodies: list[dict[str, object]] = [
        {"inputs": TEXT[i:], "parameters": {"truncate": PROMPT_TOKENS, "max_new_tokens": NEW_TOKENS}}
        for i in range(batch)
    ]

    def way() -> None:
        answers = asyncio.run(streams(server.port, bodies))
        assert all(len(a.tokens) == NEW_TOKENS for a in answers)

    return way


def measure(path: Path, batch: int, rounds: int, length: int) -> dict[str, float]:
    """Median tokens/s of each way over ``rounds`` alternating rounds, after one warm-up round."""
    flags = ("--model-id", str(path), "--max-batch-size", str(batch), "--max-total-tokens", str(length))
    with Server(*flags, "--max-input-tokens", str(length // 2)) as server:
        ways = {
            "server": server_way(server, batch),
            "bare loop": bare_way(path, batch, length),
            "generate": generate_way(path, batch),
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for round_ in range(rounds + 1):
            for name, way in ways.items():
                start = time.perf_counter()
                way()
                if round_:
                    rates[name].append(batch * NEW_TOKENS / (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in rates.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=("demo", "gpt2"), default=("demo", "gpt2"))
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=(1, 4, 16))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    make = {"demo": endless_demo, "gpt2": random_gpt2}
    table = Table(
        "model",
        "B",
        "server tok/s",
        "bare loop tok/s",
        "generate tok/s",
        "server / bare",
        "server / generate",
    )
    bars: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models:
            path = make[name](Path(folder))
            for batch in options.batch_sizes:
                rate = alone(measure, path, batch, options.rounds, length=512)
                server, bare, plain = rate["server"], rate["bare loop"], rate["generate"]
                table.add(name, batch, server, bare, plain, f"{server / bare:.2f}", f"{server / plain:.2f}")
                bars[f"{name} B={batch}"] = rate
                print(table.last(), flush=True)
    print(table)
    write_bars("throughput", bars, "tokens/s, 128 prompt + 128 new tokens (this machine, this run)")


if __name__ == "__main__":
    main()
