"""What a grammar costs a client of the real server: time to the first token, and tokens per second at B = 16.

    python benchmarks/grammar.py [--models demo gpt2] [--rounds 5]

*First token*: one client, an idle server; without a grammar, with a JSON Schema of 50 fields that the server
has never seen (the router checks it, the generator tries and compiles it), and with the same one again.
*Tokens/s*: 16 streaming clients, 64 prompt and 128 new tokens each, greedy, float32; without a grammar, with
that schema, and with a schema of one string, whose masks allow most of the vocabulary. The ways alternate
within each round, in one run of one server; medians are shown, and only the ratios mean anything elsewhere.
The vocabulary is 2,048 tokens (demo) or 50,257 made-up ones (gpt2, 124M random weights).
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from models import alone, endless_demo, random_gpt2
from report import Table, write_bars
from serving import Server, stream, streams

BATCH, PROMPT_TOKENS, NEW_TOKENS = 16, 64, 128
TEXT = "The built-in list type is a mutable sequence of objects, and this sentence goes on and on; " * 40
Schema = dict[str, object]

_serial = itertools.count()


def fifty_fields() -> Schema:
    """Five objects of ten fields, all required; no two calls give the same schema."""
    kinds: list[Schema] = [
        {"type": "string"},
        {"type": "integer"},
        {"type": "number"},
        {"type": "boolean"},
        {"enum": ["red", "green", "blue"]},
    ]
    serial = next(_serial)

    def part(number: int) -> Schema:
        fields = {f"field_{serial}_{number}_{n}": kinds[n % len(kinds)] for n in range(10)}
        return {"type": "object", "properties": fields, "required": [*fields]}

    parts = {f"part_{number}": part(number) for number in range(5)}
    return {"type": "object", "properties": parts, "required": [*parts]}


def one_string() -> Schema:
    """Free text, at least as long as the generation."""
    return {
        "type": "object",
        "properties": {"text": {"type": "string", "minLength": 4000}},
        "required": ["text"],
    }


def body(schema: Schema | None, offset: int = 0, new: int = NEW_TOKENS) -> dict[str, object]:
    parameters: dict[str, object] = {"truncate": PROMPT_TOKENS, "max_new_tokens": new}
    if schema is not None:
        parameters["grammar"] = {"type": "json", "value": schema}
    return {"inputs": TEXT[offset:], "parameters": parameters}


def with_an_end(path: Path) -> Path:
    """A grammar needs a token that ends the text: the vocabulary's last, which no text here ever meets."""
    file = path / "generation_config.json"
    settings = json.loads(file.read_text()) if file.exists() else {}
    vocabulary = json.loads((path / "tokenizer.json").read_text())["model"]["vocab"]
    file.write_text(json.dumps({**settings, "eos_token_id": max(vocabulary.values())}))
    return path


def first_token_ms(port: int, schema: Schema | None) -> float:
    times = asyncio.run(stream(port, body(schema, new=2)))
    return 1e3 * (times.tokens[0] - times.sent)


def tokens_per_s(port: int, schema: Schema | None) -> float:
    start = time.perf_counter()
    answers = asyncio.run(streams(port, [body(schema, n) for n in range(BATCH)]))
    assert all(len(answer.tokens) == NEW_TOKENS for answer in answers)
    return BATCH * NEW_TOKENS / (time.perf_counter() - start)


def measure(path: Path, rounds: int) -> tuple[dict[str, float], dict[str, float]]:
    """Medians: milliseconds to the first token, and tokens per second, of each way."""
    flags = ("--model-id", str(path), "--max-batch-size", str(BATCH), "--max-total-tokens", "512")
    with Server(*flags, "--max-input-tokens", "256") as server:
        waits: dict[str, list[float]] = {"no grammar": [], "50 fields, first": [], "50 fields, again": []}
        rates: dict[str, list[float]] = {"no grammar": [], "50 fields": [], "one string": []}
        for round_ in range(-1, rounds):  # the first round warms up
            schema = fifty_fields()
            for _ in range(3):
                fresh = fifty_fields()
                ways = (None, fresh, fresh)
                for name, asked in zip(waits, ways, strict=True):
                    waits[name].append(first_token_ms(server.port, asked))
            for name, asked in zip(rates, (None, schema, one_string()), strict=True):
                rates[name].append(tokens_per_s(server.port, asked))
            if round_ < 0:
                for values in (*waits.values(), *rates.values()):
                    values.clear()
    return _medians(waits), _medians(rates)


def _medians(samples: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in samples.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=("demo", "gpt2"), default=("demo", "gpt2"))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    make: dict[str, Callable[[Path], Path]] = {"demo": endless_demo, "gpt2": random_gpt2}
    waits_table = Table("model", "first token, ms: no grammar", "50 fields, first", "50 fields, again")
    rates_table = Table(
        "model", "tok/s: no grammar", "50 fields", "one string", "50 fields / none", "string / none"
    )
    bars: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models:
            path = with_an_end(alone(make[name], Path(folder)))
            waits, rates = measure(path, options.rounds)
            waits_table.add(name, *waits.values())
            print(waits_table.last())
            plain, fields, string = rates.values()
            ratios = (f"{fields / plain:.2f}", f"{string / plain:.2f}")
            rates_table.add(name, plain, fields, string, *ratios)
            print(rates_table.last())
            bars[name] = {way: rate / plain for way, rate in rates.items()}
    print(f"\n{waits_table}\n\n{rates_table}")
    write_bars("grammar", bars, f"tokens per second at B = {BATCH}, relative to no grammar")


if __name__ == "__main__":
    main()
