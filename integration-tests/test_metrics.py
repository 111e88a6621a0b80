"""``/metrics`` after real traffic: what is counted, and that it adds up."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
from prometheus_client.parser import text_string_to_metric_families

PROMPT = "The list type is"


class Scrape(dict[str, float]):
    """``name{label="value"}`` -> value. Absent is 0, as for Prometheus' ``rate``."""

    def __init__(self, server) -> None:
        answer = httpx.get(f"{server.base_url}/metrics")
        assert answer.status_code == 200
        assert "_total" not in answer.text
        assert "_created" not in answer.text
        super().__init__()
        self.types = {}
        for family in text_string_to_metric_families(answer.text):
            self.types[family.name] = family.type
            for sample in family.samples:
                labels = ",".join(f'{k}="{v}"' for k, v in sample.labels.items())
                name = sample.name.removesuffix("_total")  # which the parser adds to counters
                self[f"{name}{{{labels}}}" if labels else name] = sample.value

    def __missing__(self, key: str) -> float:
        return 0.0


def until(server, condition: Callable[[Scrape], object], timeout: float = 30) -> Scrape:
    deadline = time.monotonic() + timeout
    while not condition(scrape := Scrape(server)):
        assert time.monotonic() < deadline, dict(scrape)
        time.sleep(0.05)
    return scrape


def generate(server, prompt=PROMPT, path="/generate", **parameters) -> httpx.Response:
    body = {"inputs": prompt, "parameters": parameters}
    return httpx.post(f"{server.base_url}{path}", json=body, timeout=60)


def test_every_request_and_every_token_is_accounted_for(launch):
    server = launch("--max-batch-size", "4").wait_ready()
    fresh = Scrape(server)
    assert not [name for name in fresh if name.startswith(("tgi_request", "tgi_batch_inference"))]

    generate(server, max_new_tokens=5)
    scrape = Scrape(server)
    assert scrape["tgi_request_count"] == scrape["tgi_request_success"] == 1
    assert 'tgi_request_duration_bucket{le="0.00015000000000000001"}' in scrape
    assert scrape.types["tgi_request_count"] == "counter"
    assert scrape.types["tgi_batch_inference_duration"] == "histogram"

    generate(server, "")
    assert Scrape(server)['tgi_request_failure{err="validation"}'] == 1

    paths = ["/generate", "/generate_stream"] * 6
    with ThreadPoolExecutor(len(paths)) as pool:
        jobs = [
            pool.submit(
                generate, server, f"{PROMPT} {i}", path, max_new_tokens=10 + 3 * i, do_sample=True, seed=i
            )
            for i, path in enumerate(paths)
        ]
        assert all(job.result().status_code == 200 for job in jobs)
    adds_up(until(server, lambda s: s["tgi_batch_current_size"] == 0), requests=13, slots=4)
    drops(server)
    chats(server)


def adds_up(scrape: Scrape, *, requests: int, slots: int) -> None:
    """All of them answered: nothing was made for nobody."""
    tokens = scrape["tgi_request_generated_tokens_sum"]
    assert scrape["tgi_request_success"] == scrape["tgi_request_generated_tokens_count"] == requests
    assert scrape["neuronx_tgi_time_to_first_token_seconds_count"] == requests
    assert scrape["neuronx_tgi_inter_token_latency_seconds_count"] == tokens - requests
    assert scrape["tgi_request_skipped_tokens_count"] == tokens
    # one prefill per prompt, which makes its first token; a row of a decode makes one more
    assert scrape['tgi_batch_inference_count{method="prefill"}'] == requests
    assert scrape["tgi_batch_next_size_sum"] == requests
    assert scrape["neuronx_tgi_decode_rows_sum"] == tokens - requests
    decodes = scrape['tgi_batch_inference_count{method="decode"}']
    assert decodes == scrape["neuronx_tgi_decode_rows_count"] < tokens - requests  # they shared steps
    for method in ("prefill", "decode"):
        count = scrape[f'tgi_batch_inference_success{{method="{method}"}}']
        assert count == scrape[f'tgi_batch_inference_count{{method="{method}"}}']
        parts = ("forward", "decode", "filter", "inference")
        sums = {p: scrape[f'tgi_batch_{p}_duration_sum{{method="{method}"}}'] for p in parts}
        assert all(scrape[f'tgi_batch_{p}_duration_count{{method="{method}"}}'] == count for p in parts)
        assert abs(sums["forward"] + sums["decode"] + sums["filter"] - sums["inference"]) < 1e-6
        assert sums["forward"] > 0
    joins = sum(scrape[f'tgi_batch_concat{{reason="{r}"}}'] for r in ("backpressure", "wait_exceeded"))
    assert 1 <= joins <= scrape["neuronx_tgi_prefill_stall_seconds_count"] < requests
    assert scrape["neuronx_tgi_prefill_stalled_requests"] <= (slots - 1) * requests
    # the CPU backend computes the rows between the first and the last live slot, and prompts as they are
    assert scrape['neuronx_tgi_padding_positions{method="prefill"}'] == 0
    computed = scrape['neuronx_tgi_computed_positions{method="decode"}']
    padding = scrape['neuronx_tgi_padding_positions{method="decode"}']
    assert computed - padding == scrape["neuronx_tgi_decode_rows_sum"]
    assert scrape["neuronx_tgi_slots"] == scrape["neuronx_tgi_free_slots"] == slots
    assert scrape["tgi_queue_size"] == scrape["neuronx_tgi_slot_occupancy"] == 0


def drops(server) -> None:
    """A client that leaves is one failure, and no success."""
    before = Scrape(server)
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 200, "stop": []}}
    url = f"{server.base_url}/generate_stream"
    with httpx.stream("POST", url, json=body, timeout=60) as response:
        assert json.loads(next(line for line in response.iter_lines() if line)[6:])["token"]
    after = until(server, lambda s: s['tgi_request_failure{err="dropped"}'] == 1)
    assert after["tgi_request_count"] == before["tgi_request_count"] + 1
    assert after["tgi_request_success"] == before["tgi_request_success"]
    after = until(server, lambda s: s["tgi_batch_current_size"] == 0)
    made = after["neuronx_tgi_decode_rows_sum"] - before["neuronx_tgi_decode_rows_sum"]
    assert made < 200  # its slot was freed


def chats(server) -> None:
    """One chat is two requests; one whose template fails is the first of them and a failure."""
    url, before = f"{server.base_url}/v1/chat/completions", Scrape(server)
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5}
    assert httpx.post(url, json=body, timeout=60).status_code == 200
    after = Scrape(server)
    assert after["tgi_request_count"] == before["tgi_request_count"] + 2
    assert after["tgi_request_success"] == before["tgi_request_success"] + 1
    body["messages"][0]["role"] = "stranger"
    assert httpx.post(url, json=body, timeout=60).status_code == 422
    assert Scrape(server)["tgi_request_count"] == after["tgi_request_count"] + 1
    assert Scrape(server)['tgi_request_failure{err="template"}'] == 1


def test_while_the_generator_is_down_metrics_answer_and_say_so(launch):
    server = launch(
        "--backend", "fake", "--simulated-clock", "0.01:1=0.02", "--max-batch-size", "1"
    ).wait_ready()
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 60, "ignore_eos_token": True}}
    with httpx.stream("POST", f"{server.base_url}/generate_stream", json=body, timeout=60) as response:
        events = (line for line in response.iter_lines() if line)
        next(events)
        assert Scrape(server)["neuronx_tgi_slot_occupancy"] == 1
        os.kill(server.children()["serve_generator"], signal.SIGKILL)
        down = until(server, lambda s: s["neuronx_tgi_generator_losses"] == 1)
        assert down["neuronx_tgi_slots"] == down["tgi_batch_current_size"] == 0
        assert down["neuronx_tgi_resubmissions"] == 1
        until(server, lambda s: s["tgi_queue_size"] == 1)  # it waits for the next generator
        last = json.loads(list(events)[-1][5:])
    assert last["generated_text"]
    after = Scrape(server)
    assert after["tgi_request_success"] == after["neuronx_tgi_slots"] == 1
