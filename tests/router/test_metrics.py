"""What the requests of a router leave in its metrics (conformance cases 167 to 169)."""

from __future__ import annotations

import asyncio
import re

import pytest

from neuron_server.errors import GenerationError
from neuron_server.router.identity import version
from neuron_server.session import Pass, Phase


async def scrape(one) -> list[str]:
    answer = await one.client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    return answer.text.splitlines()


async def test_families_appear_with_their_first_update(harness):
    one = harness(opened=False)
    info, one.source.info = one.source.info, None
    samples = [line for line in await scrape(one) if line and not line.startswith("#")]
    assert samples == [
        f'neuronx_tgi_build_info{{version="{version()}"}} 1',
        'neuronx_tgi_replica_up{replica="0"} 0',  # so that one that never comes up can raise an alarm
    ]
    one.source.info = info
    lines = await scrape(one)
    assert "tgi_queue_size 3" in lines
    assert "tgi_batch_current_size 2" in lines
    assert "tgi_batch_current_max_tokens 4096" in lines
    assert not [line for line in lines if line.startswith("tgi_request")]


async def test_a_router_whose_generator_is_down_still_answers(harness):
    one = harness()
    await one.generate("Hello", max_new_tokens=1)
    one.source.phase, one.source.running, one.source.queued = Phase.LOADING, 0, 7
    lines = await scrape(one)
    assert "tgi_request_success 1" in lines
    assert "tgi_batch_current_size 0" in lines
    assert "tgi_queue_size 7" in lines


async def test_one_generation_moves_tgis_metrics(harness):
    one = harness()
    await one.generate("Hello", max_new_tokens=3)
    lines = await scrape(one)
    assert "tgi_request_count 1" in lines
    assert "tgi_request_success 1" in lines
    assert 'tgi_request_duration_bucket{le="0.00015000000000000001"} 0' in lines
    assert 'tgi_request_duration_bucket{le="+Inf"} 1' in lines
    assert "tgi_request_duration_count 1" in lines
    assert 'tgi_request_generated_tokens_bucket{le="2048"} 1' in lines
    assert 'tgi_request_generated_tokens_bucket{le="20.48"} 1' in lines
    assert "tgi_request_generated_tokens_sum 3" in lines
    assert "tgi_request_input_length_sum 1" in lines
    assert "tgi_request_max_new_tokens_sum 3" in lines
    assert 'tgi_request_skipped_tokens_bucket{le="0"} 3' in lines
    assert "tgi_request_skipped_tokens_sum 0" in lines
    assert "# TYPE tgi_request_count counter" in lines
    assert not [line for line in lines if "_total" in line or "_created" in line]
    assert not [line for line in lines if line.startswith("tgi_request_failure")]
    for name in ("validation", "queue", "inference", "mean_time_per_token"):
        assert f"tgi_request_{name}_duration_count 1" in lines
    bounds = [line for line in lines if line.startswith("tgi_request_duration_bucket")]
    assert len(bounds) == 36


async def test_the_first_token_and_the_gaps_between_tokens_are_timed(harness):
    one = harness()
    await one.generate("Hello", "/generate_stream", max_new_tokens=3)
    await one.generate("Hello", max_new_tokens=1)
    lines = await scrape(one)
    assert "neuronx_tgi_time_to_first_token_seconds_count 2" in lines
    assert "neuronx_tgi_inter_token_latency_seconds_count 2" in lines


async def test_every_line_is_exposition_format(harness):
    one = harness()
    await one.generate("Hello", max_new_tokens=3)
    await one.generate("")
    one.service.metrics.batch.passes([Pass("prefill", 1, joined=1, positions=8, tokens=2)], 0.1)
    sample = re.compile(r'[a-z_]+(\{[a-z]+="[^"]*"(,[a-z]+="[^"]*")*\})? \S+')
    for line in await scrape(one):
        assert not line or line.startswith(("# HELP ", "# TYPE ")) or sample.fullmatch(line), line


async def test_each_kind_of_failure_is_counted(harness):
    one = harness(max_best_of=1)
    await one.generate("")
    await one.generate("Hello", "/generate_stream", best_of=2)
    await one.generate("Hello", best_of=2)  # TGI does not count this one
    lines = await scrape(one)
    assert 'tgi_request_failure{err="validation"} 2' in lines
    assert "tgi_request_count 2" in lines
    assert not [line for line in lines if line.startswith("tgi_request_success")]


@pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
@pytest.mark.parametrize(
    ("script", "label"), [((72, GenerationError("boom")), "generation"), ((72, EOFError), "incomplete")]
)
async def test_a_generation_that_fails_is_counted_by_its_kind(harness, path, script, label):
    one = harness(script=script)
    await one.generate("Hello", path)
    lines = await scrape(one)
    assert f'tgi_request_failure{{err="{label}"}} 1' in lines
    assert "tgi_request_count 1" in lines
    assert not [line for line in lines if line.startswith(("tgi_request_success", "tgi_request_duration"))]
    assert 'tgi_request_skipped_tokens_bucket{le="0"} 1' in lines  # its token was received all the same


async def test_without_a_permit_a_request_is_overloaded(harness):
    one = harness(max_concurrent_requests=1)
    one.source.gate.clear()
    running = asyncio.create_task(one.generate("Hello", max_new_tokens=1))
    await one.source.arrived.wait()
    assert (await one.generate("Hello")).status_code == 429
    one.source.gate.set()
    await running
    lines = await scrape(one)
    assert 'tgi_request_failure{err="overloaded"} 1' in lines
    assert "tgi_request_count 2" in lines
    assert "tgi_request_input_length_count 1" in lines  # it was never validated


async def test_a_client_that_leaves_is_dropped_and_neither_success_nor_failure(harness):
    one = harness()
    one.source.gate.clear()
    leaving = asyncio.create_task(one.generate("Hello", "/generate_stream"))
    await one.source.arrived.wait()
    leaving.cancel()
    await one.source.closed.wait()
    await one.service.idle()
    failures = [line for line in await scrape(one) if line.startswith("tgi_request_failure")]
    assert failures == ['tgi_request_failure{err="dropped"} 1']


async def test_best_of_counts_once_but_each_copy_has_a_length(harness):
    one = harness()
    await one.generate("Hello", best_of=2, do_sample=True, max_new_tokens=2)
    lines = await scrape(one)
    assert "tgi_request_count 1" in lines
    assert "tgi_request_success 1" in lines
    assert "tgi_request_input_length_count 2" in lines


async def test_a_chat_counts_its_route_and_its_generation(harness):
    one = harness()
    await one.generate("Hello")
    messages = [{"role": "user", "content": "Hello"}]
    answer = await one.client.post("/v1/chat/completions", json={"messages": messages})
    assert answer.status_code == 200
    lines = await scrape(one)
    assert "tgi_request_count 3" in lines
    assert "tgi_request_success 2" in lines


async def test_tokenizing_a_chat_counts_and_tokenizing_a_text_does_not(harness):
    one = harness()
    assert (await one.client.post("/tokenize", json={"inputs": "Hello"})).status_code == 200
    assert not [line for line in await scrape(one) if line.startswith("tgi_request")]
    messages = [{"role": "user", "content": "Hello"}]
    assert (await one.client.post("/chat_tokenize", json={"messages": messages})).status_code == 200
    assert "tgi_request_count 1" in await scrape(one)


@pytest.mark.parametrize(
    ("template", "failures"),
    [
        ("{{ raise_exception('no') }}", ['tgi_request_failure{err="template"} 1']),
        (None, []),  # TGI does not count a model without one
    ],
)
async def test_a_template_that_fails_is_counted_and_a_missing_one_is_not(harness, template, failures):
    one = harness(chat_template=template)
    messages = [{"role": "user", "content": "Hello"}]
    answer = await one.client.post("/v1/chat/completions", json={"messages": messages})
    assert answer.status_code in {404, 422}
    lines = await scrape(one)
    assert "tgi_request_count 1" in lines
    assert [line for line in lines if line.startswith("tgi_request_failure")] == failures


async def test_completions_count_the_request_and_each_of_its_prompts(harness):
    one = harness()
    body = {"prompt": ["Hello", "Hello Hello"], "max_tokens": 1}
    assert (await one.client.post("/v1/completions", json=body)).status_code == 200
    lines = await scrape(one)
    assert "tgi_request_count 3" in lines
    assert "tgi_request_success 2" in lines
