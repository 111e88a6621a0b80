"""Two replicas against one, and what clients see when a replica is killed under load.

    python benchmarks/replicas.py [--rounds 5] [--batch-size 4] [--parts real simulated kill]

*real*: the demo model on the CPU, computed. The replicas share the cores with each other, the router and the
clients, so that this shows what a second process gives or costs on this machine, and nothing of a device.

*simulated*: the fake backend with ``--simulated-clock``, so that each replica takes the time that a device of
its own would; all its figures are **simulated**. What is real in them is router, wire and scheduling.

In both, 2 x B clients stream 128 new tokens from 128-token prompts, from one replica of B slots and from two;
the two ways alternate within each round, and medians are shown: only the ratios mean anything elsewhere.

*kill*: the demo model, 2 x B clients, and ``kill -9`` of one generator in the middle; the longest pause of
any client, against the longest one of an undisturbed run, and how many clients saw an error.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from models import endless_demo
from report import Table, write_bars
from serving import Server, StreamTimes, stream

PROMPT_TOKENS = NEW_TOKENS = 128
TEXT = "The built-in list type is a mutable sequence of objects, and this sentence goes on and on; " * 40

#: Seconds of a prefill, and of a step by rows: of the size of an 8B model's on a few cores, and rounded.
CLOCK = "0.1:1=0.02,4=0.022,16=0.03"

Body = dict[str, object]


def bodies(count: int, new_tokens: int = NEW_TOKENS) -> list[Body]:
    """Requests with different prompts of exactly ``PROMPT_TOKENS`` tokens."""
    parameters = {"truncate": PROMPT_TOKENS, "max_new_tokens": new_tokens}
    return [{"inputs": TEXT[i:], "parameters": parameters} for i in range(count)]


def server(path: Path, batch: int, replicas: int, *flags: str) -> Server:
    """A server of so many replicas of ``batch`` slots."""
    shape = ("--max-batch-size", str(batch), "--max-total-tokens", "512", "--max-input-tokens", "256")
    return Server("--model-id", str(path), *shape, "--data-parallel-size", str(replicas), *flags)


async def until_ready(port: int, replicas: int) -> None:
    """The server says ready with its first replica; a measurement needs all of them."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /info HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")
        answer = await reader.read()
        writer.close()
        if answer.count(b'"phase":"ready"') == replicas:
            return
        await asyncio.sleep(0.1)
    raise RuntimeError(f"{replicas} replicas were not ready within 120 s")


# -- throughput ----------------------------------------------------------------------------------------------


async def load(port: int, requests: Sequence[Body]) -> list[StreamTimes]:
    """All requests at once; raises when any of them fails."""
    return list(await asyncio.gather(*(stream(port, one) for one in requests)))


def throughput(path: Path, batch: int, rounds: int, *flags: str) -> dict[int, tuple[float, float]]:
    """Replicas -> median tokens/s of all clients together, and median of the mean time to a first token."""
    clients = 2 * batch
    figures: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
    with ExitStack() as stack:
        servers = {n: stack.enter_context(server(path, batch, n, *flags)) for n in figures}
        for n, one in servers.items():
            asyncio.run(until_ready(one.port, n))
        for round_ in range(rounds + 1):
            for n, one in servers.items():
                start = time.perf_counter()
                answers = asyncio.run(load(one.port, bodies(clients)))
                seconds = time.perf_counter() - start
                assert all(len(a.tokens) == NEW_TOKENS for a in answers)
                if round_:  # the first one warms up
                    first = statistics.mean(a.tokens[0] - a.sent for a in answers)
                    figures[n].append((clients * NEW_TOKENS / seconds, first))
    return {
        n: (statistics.median(rate for rate, _ in found), statistics.median(first for _, first in found))
        for n, found in figures.items()
    }


# -- kill -9 -------------------------------------------------------------------------------------------------


def longest_pause(answers: Sequence[StreamTimes]) -> float:
    """The longest time between two tokens of any client, in seconds; waiting for a slot is no pause."""
    return max(
        later - earlier for a in answers for earlier, later in zip(a.tokens, a.tokens[1:], strict=False)
    )


async def killed(one: Server, requests: Sequence[Body], after_s: float) -> list[StreamTimes | BaseException]:
    """The answers when the newest generator is killed ``after_s`` into the load."""
    answers = asyncio.gather(*(stream(one.port, body) for body in requests), return_exceptions=True)
    await asyncio.sleep(after_s)
    os.kill(one.generators[-1], signal.SIGKILL)
    return list(await answers)


def kill(path: Path, batch: int, rounds: int, replicas: int) -> tuple[float, float, int, int]:
    """Median longest pause without and with a kill; clients with an error, and clients, of all rounds.

    Every answer must have all of its tokens, so that an answer cut short counts as an error.
    """
    requests = bodies(2 * batch, new_tokens=256)
    calm, disturbed, errors = [], [], 0
    with server(path, batch, replicas, "--max-restarts", str(rounds)) as one:
        for _ in range(rounds):
            asyncio.run(until_ready(one.port, replicas))
            start = time.perf_counter()
            calm.append(longest_pause(asyncio.run(load(one.port, requests))))
            seconds = time.perf_counter() - start
            answers = asyncio.run(killed(one, requests, seconds / 3))
            whole = [a for a in answers if isinstance(a, StreamTimes) and len(a.tokens) == 256]
            errors += len(answers) - len(whole)
            disturbed.append(longest_pause(whole))
    return statistics.median(calm), statistics.median(disturbed), errors, rounds * len(requests)


# -- the report ----------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument(
        "--parts", nargs="+", choices=("real", "simulated", "kill"), default=("real", "simulated", "kill")
    )
    options = parser.parse_args()
    batch, rounds = options.batch_size, options.rounds
    bars: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = endless_demo(Path(folder))
        table = Table(
            "what", "1 replica tok/s", "2 replicas tok/s", "2 / 1", "first token 1, s", "first token 2, s"
        )
        for part, flags in (
            ("real", ("--backend", "cpu")),
            ("simulated", ("--backend", "fake", "--simulated-clock", CLOCK)),
        ):
            if part in options.parts:
                found = throughput(path, batch, rounds, *flags)
                (one, first_one), (two, first_two) = found[1], found[2]
                label = "demo model on the CPU" if part == "real" else f"SIMULATED clock {CLOCK}"
                cells = (f"{two / one:.2f}", f"{first_one:.2f}", f"{first_two:.2f}")
                table.add(f"{label}, B = {batch}, {2 * batch} clients", one, two, *cells)
                bars[part] = {"1 replica": one, "2 replicas": two}
                print(table.last(), flush=True)
        pauses = Table(
            "kill -9 of one generator", "longest pause s", "undisturbed s", "clients with an error"
        )
        for replicas in (1, 2) if "kill" in options.parts else ():
            calm, disturbed, errors, clients = kill(path, batch, rounds, replicas)
            what = f"{replicas} replica(s), {2 * batch} clients"
            pauses.add(what, f"{disturbed:.2f}", f"{calm:.2f}", f"{errors} of {clients}")
            print(pauses.last(), flush=True)
    print(f"\n{table}\n\n{pauses}")
    if bars:
        write_bars("replicas", bars, "tokens/s of one and two replicas (this machine, this run)")


if __name__ == "__main__":
    main()
