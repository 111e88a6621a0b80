"""64 requests of random lengths at random times on 4 slots: the very tokens of ``transformers.generate``.

In float32, greedy, one prompt at a time there and in any company here; with poison on, so that a scheduler
that would corrupt a neighbour on a device corrupts it here.
"""

from __future__ import annotations

import asyncio
import random
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import torch
from backends.family_models import CONFIGS, VOCAB, generate, save_tiny
from harness import DEMO_MODEL
from transformers import AutoModelForCausalLM, AutoTokenizer

from neuron_server.backends import load_backend
from neuron_server.config import GeneratorConfig
from neuron_server.engine.loop import EngineLoop
from neuron_server.models import EXACT_FAMILIES
from neuron_server.request import GenerationRequest

SLOTS, LENGTH, REQUESTS = 4, 64, 64
#: Of each family the first variant of the table; the backend's own tests take all of them.
VARIANTS = dict(reversed(list(CONFIGS)))


def random_requests(seed: int) -> list[tuple[list[int], int]]:
    """(prompt, new tokens): one-token prompts, full slots and everything between."""
    rng = random.Random(seed)
    sizes = [(1, LENGTH - 1), (1, 1), (LENGTH - 1, 1), (40, LENGTH - 40)]
    while len(sizes) < REQUESTS:
        prompt = rng.randint(1, 40)
        sizes.append((prompt, rng.randint(1, min(24, LENGTH - prompt))))
    rng.shuffle(sizes)
    return [([rng.randrange(VOCAB) for _ in range(prompt)], new) for prompt, new in sizes]


async def serve(config: GeneratorConfig, requests: list[tuple[list[int], int]]) -> list[list[int]]:
    """Every request's tokens, from the engine's loop, which they reach at random times."""
    loop = EngineLoop(lambda: load_backend(config))
    loop.start()
    await loop.ready()
    rng = random.Random(1)

    async def one(prompt: list[int], new: int, delay: float) -> list[int]:
        await asyncio.sleep(delay)
        request = GenerationRequest(input_ids=tuple(prompt), prompt_length=len(prompt), max_new_tokens=new)
        return [event.token_id async for event in loop.stream(request)]

    try:
        return await asyncio.gather(*(one(*request, rng.random() * 0.5) for request in requests))
    finally:
        await loop.close()


@pytest.mark.parametrize("family", EXACT_FAMILIES)
async def test_engine_tokens_equal_generate_in_insert_and_in_rebuild_mode(family, tmp_path):
    torch.set_num_threads(1)
    model = save_tiny(family, VARIANTS[family], tmp_path)
    requests = random_requests(seed=len(family))
    expected = [generate(model, prompt, new) for prompt, new in requests]
    for mode in ("insert", "rebuild"):
        config = GeneratorConfig(
            model_path=str(tmp_path),
            uds_path="",
            batch_size=SLOTS,
            max_length=LENGTH,
            max_prompt_tokens=LENGTH - 1,
            prefill_mode=mode,
            poison=True,
        )
        assert await serve(config, requests) == expected, mode


@pytest.mark.parametrize("mode", ["insert", "rebuild"])
def test_server_tokens_equal_generate(launch, mode):
    """The same through launcher, router, wire and HTTP, on the demo model."""
    flags = ("--prefill-mode", mode, "--poison", "--max-batch-size", str(SLOTS), "--max-total-tokens", "256")
    server = launch(*flags).wait_ready()
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32).eval()
    rng = random.Random(5)
    words = tuple(tokenizer.decode(i) for i in range(300, 340))
    bodies = [
        {
            "inputs": "".join(rng.choices(words, k=rng.randint(1, 60))),
            "parameters": {"max_new_tokens": rng.randint(1, 24), "details": True},
        }
        for _ in range(REQUESTS)
    ]

    def ask(body: dict) -> list[int]:
        response = httpx.post(f"{server.base_url}/generate", json=body, timeout=120)
        assert response.status_code == 200, response.text
        return [token["id"] for token in response.json()["details"]["tokens"]]

    def expect(body: dict) -> list[int]:
        ids = tokenizer(body["inputs"], return_tensors="pt")
        output = model.generate(
            **ids, do_sample=False, max_new_tokens=body["parameters"]["max_new_tokens"], pad_token_id=0
        )
        return output[0, ids["input_ids"].shape[1] :].tolist()

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, bodies))
    assert answers == [expect(body) for body in bodies]
