"""A greedy server in twenty lines: what the engine does, without it, so that backends are tested alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
import torch

from neuron_server.backend import Backend, DecodeRow, PrefillRow

Request = tuple[list[int], int]  # prompt, new tokens
Serve = Callable[[Backend, Sequence[Request], int], list[list[int]]]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def serve() -> Serve:
    """Serve requests greedily under a random schedule; the tokens of each request."""
    return _serve


def _serve(backend: Backend, requests: Sequence[Request], seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    size = backend.info.shape.batch_size
    answers: list[list[int]] = [[] for _ in requests]
    waiting = list(range(len(requests)))
    rng.shuffle(waiting)
    running: dict[int, int] = {}  # slot -> request
    while waiting or running:
        free = [slot for slot in range(size) if slot not in running]
        rng.shuffle(free)
        joining = free[: rng.randint(0 if running else 1, size)][: len(waiting)]
        new = {slot: waiting.pop() for slot in joining}
        _place(backend, requests, answers, running, new)
        running |= new
        for slot in [s for s, r in running.items() if len(answers[r]) == requests[r][1]]:
            backend.release([slot])
            del running[slot]
    return answers


def _place(
    backend: Backend,
    requests: Sequence[Request],
    answers: list[list[int]],
    running: dict[int, int],
    new: dict[int, int],
) -> None:
    """Prefill what joins, then decode what has a pending token (one-token prompts among them)."""
    rebuild = backend.info.prefill_mode == "rebuild"
    by_decode = {} if rebuild else {s: r for s, r in new.items() if len(requests[r][0]) == 1}
    by_prefill = {s: r for s, r in new.items() if s not in by_decode}
    pending = list(running)
    if by_prefill:
        rows = [PrefillRow(s, requests[r][0]) for s, r in by_prefill.items()]
        if rebuild:
            rows += [PrefillRow(s, requests[r][0] + answers[r][:-1]) for s, r in running.items()]
        for row, logits in zip(rows, backend.prefill(rows).logits, strict=True):
            if row.slot in new:
                answers[new[row.slot]].append(int(logits.argmax()))
        live = [s for s, r in by_prefill.items() if len(answers[r]) < requests[r][1]]
        done = [s for s in by_prefill if s not in live]
        if done:
            backend.release(done)
            for slot in done:
                del new[slot]
        pending += live
    owner = running | new
    steps = [_pending(s, requests[owner[s]][0], answers[owner[s]]) for s in pending]
    steps += [DecodeRow(s, requests[r][0][0], 0) for s, r in by_decode.items()]
    for row, logits in zip(steps, backend.decode(steps).logits, strict=True):
        answers[owner[row.slot]].append(int(logits.argmax()))


def _pending(slot: int, prompt: list[int], answer: list[int]) -> DecodeRow:
    return DecodeRow(slot, answer[-1], len(prompt) + len(answer) - 1)
