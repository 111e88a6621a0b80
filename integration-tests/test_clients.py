"""What published clients see: huggingface_hub's InferenceClient, text-generation, plain httpx."""

from __future__ import annotations

import json

import httpx
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import ValidationError as HubValidationError
from text_generation import AsyncClient, Client
from text_generation.errors import ValidationError as TgiValidationError

PROMPT = "The list type is"


def test_hub_client_generates_text_and_details(demo):
    client = InferenceClient(demo.base_url)
    text = client.text_generation(PROMPT, max_new_tokens=8, return_full_text=False)
    answer = client.text_generation(PROMPT, max_new_tokens=8, details=True, return_full_text=False)
    assert isinstance(text, str)
    assert text
    assert answer.generated_text == text
    assert answer.details.generated_tokens == len(answer.details.tokens) <= 8
    assert all(token.logprob < 0 for token in answer.details.tokens)


def test_hub_client_streams_the_same_text(demo):
    client = InferenceClient(demo.base_url)
    whole = client.text_generation(PROMPT, max_new_tokens=12, return_full_text=False)
    pieces = list(client.text_generation(PROMPT, max_new_tokens=12, stream=True, details=True))
    assert "".join(p.token.text for p in pieces if not p.token.special) == whole
    assert pieces[-1].details.finish_reason in ("length", "eos_token")
    assert all(p.details is None for p in pieces[:-1])


def test_hub_client_raises_its_validation_error(demo):
    with pytest.raises(HubValidationError, match="temperature"):
        InferenceClient(demo.base_url).text_generation(PROMPT, temperature=-1.0)


def test_hub_client_reads_info_and_health(demo):
    client = InferenceClient(demo.base_url, provider="hf-inference")
    info = client.get_endpoint_info()
    assert info["router"] == "text-generation-router"
    assert info["max_total_tokens"] > info["max_input_tokens"]
    assert client.health_check(demo.base_url)


@pytest.mark.case(62)
def test_text_generation_client_generates_and_streams(demo):
    client = Client(demo.base_url)
    answer = client.generate(PROMPT, max_new_tokens=10)
    streamed = list(client.generate_stream(PROMPT, max_new_tokens=10))
    assert answer.generated_text == streamed[-1].generated_text
    assert answer.details.generated_tokens == len(streamed)
    assert [t.id for t in answer.details.tokens] == [s.token.id for s in streamed]


def test_text_generation_client_raises_its_validation_error(demo):
    with pytest.raises(TgiValidationError):
        Client(demo.base_url).generate("")


@pytest.mark.case(67)
def test_text_generation_client_ranks_best_of(demo):
    answer = Client(demo.base_url).generate(PROMPT, max_new_tokens=6, best_of=2, do_sample=True)
    assert len(answer.details.best_of_sequences) == 1


async def test_async_text_generation_client_streams(demo):
    client = AsyncClient(demo.base_url)
    texts = [r.token.text async for r in client.generate_stream(PROMPT, max_new_tokens=5)]
    assert 1 <= len(texts) <= 5


def test_httpx_reads_the_stream_line_by_line(demo):
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 5, "details": True}}
    with httpx.stream("POST", f"{demo.base_url}/generate_stream", json=body, timeout=60) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert all(line.startswith("data: {") for line in lines)
    events = [json.loads(line[len("data: ") :]) for line in lines]
    assert [e["index"] for e in events] == list(range(1, len(events) + 1))
    assert events[-1]["details"]["input_length"] > 0


def test_a_refused_stream_has_its_real_status(demo):
    response = httpx.post(f"{demo.base_url}/generate_stream", json={"inputs": ""})
    assert response.status_code == 422
    assert response.json() == {
        "error": "Input validation error: `inputs` cannot be empty",
        "error_type": "validation",
    }
