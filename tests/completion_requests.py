"""Completions for tests: the request, and what to look for in its answer."""

from __future__ import annotations

import asyncio

PATH = "/v1/completions"
EOS = 0


async def complete(one, prompt="Hello", **fields):
    """The answer to one request."""
    return await one.client.post(PATH, json={"prompt": prompt, **fields})


def choices(found: list[dict], index: int) -> list[dict]:
    """The choices of one prompt in the events of a stream, in order."""
    of_all = [choice for event in found for choice in event.get("choices", ())]
    return [choice for choice in of_all if choice["index"] == index]


async def passes(condition) -> None:
    """Let everybody run until ``condition`` holds; it must within a few rounds."""
    for _ in range(100):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("never came true")
