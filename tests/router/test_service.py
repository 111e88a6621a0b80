"""Folding, ranking, permits and log lines."""

from __future__ import annotations

import logging
import time

import pytest

from neuron_server.errors import GenerationError, IncompleteGenerationError, ValidationError
from neuron_server.event import FinishReason, TokenEvent
from neuron_server.router.answer import Answer, Ending, Piece, Timings, Token, fold
from neuron_server.router.durations import human
from neuron_server.router.generation import Call
from neuron_server.router.tgi_schema import GenerateParameters


def call(inputs="Hello", **parameters) -> Call:
    return Call(inputs, GenerateParameters(**parameters), time.monotonic())


def ranked(*logprobs) -> Answer:
    ending = Ending("", FinishReason.LENGTH, 1, None, 1, Timings(1, 0, 0, 1))
    return Answer([Token(1, "a", logprob) for logprob in logprobs], [], [], ending)


def test_the_mean_of_log_probabilities_ranks_and_an_unknown_one_ranks_last():
    assert ranked(-1.0, -3.0).mean_logprob == -2.0
    assert ranked(-1.0, None).mean_logprob == float("-inf")


async def test_best_of_answers_the_likeliest_first_and_the_first_of_equals(harness, monkeypatch):
    one = harness(max_best_of=4)
    means = iter([-2.0, -1.0, -3.0, -1.0])

    async def scored(request):
        one.source.requests.append(request)
        yield TokenEvent(70, next(means), finish=FinishReason.LENGTH)

    monkeypatch.setattr(one.source, "stream", scored)
    answers = await one.service.generate(call(best_of=4, do_sample=True))
    seeds = [request.sampling.seed for request in one.source.requests]
    assert [answer.tokens[0].logprob for answer in answers] == [-1.0, -2.0, -3.0, -1.0]
    assert answers[0].ending.seed == seeds[1]


async def test_best_of_fails_as_a_whole_and_frees_everything(harness, monkeypatch):
    one = harness()
    left = []

    async def one_fails(request):
        number = len(one.source.requests)
        one.source.requests.append(request)
        try:
            yield TokenEvent(70, -1.0)
            if number == 1:
                raise GenerationError("boom")
            await one.source.closed.wait()
        finally:
            left.append(number)

    monkeypatch.setattr(one.source, "stream", one_fails)
    with pytest.raises(GenerationError):
        await one.service.generate(call(best_of=2, do_sample=True))
    assert sorted(left) == [0, 1]
    assert one.service.in_flight == 0


async def test_a_source_that_fails_while_it_is_closed_keeps_no_permit(harness, monkeypatch):
    one = harness()

    async def stubborn(request):
        one.source.requests.append(request)
        try:
            yield TokenEvent(70, -1.0)
            if len(one.source.requests) == 3:
                raise GenerationError("boom")
            await one.source.closed.wait()
        finally:
            raise OSError("the way down is gone")

    monkeypatch.setattr(one.source, "stream", stubborn)
    generation = one.service.stream(call())
    await generation.admit()
    await anext(generation.pieces)
    with pytest.raises(OSError, match="the way down"):
        await generation.close()
    assert one.service.in_flight == 0
    with pytest.raises(OSError, match="the way down"):
        await one.service.generate(call(best_of=2, do_sample=True))
    assert one.service.in_flight == 0


async def test_a_fold_of_a_stream_without_an_end_is_incomplete():
    async def pieces():
        yield Piece(Token(1, "a", None))

    with pytest.raises(IncompleteGenerationError):
        await fold(pieces())


async def test_the_slot_is_free_before_the_last_piece_goes_out(harness):
    one = harness(script=(72,))
    generation = one.service.stream(call(max_new_tokens=2))
    await generation.admit()
    async for piece in generation.pieces:
        assert one.source.closed.is_set() is (piece.ending is not None)
    await generation.close()
    assert one.service.in_flight == 0


async def test_closing_is_idempotent_and_fine_in_any_state(harness):
    one = harness()
    fresh = one.service.stream(call())
    await fresh.close()
    admitted = one.service.stream(call())
    await admitted.admit()
    assert one.service.in_flight == 1
    for _ in range(2):
        await admitted.close()
    refused = one.service.stream(call(""))
    with pytest.raises(ValidationError):
        await refused.admit()
    assert one.service.in_flight == 1
    await refused.close()
    assert one.service.in_flight == 0
    await one.service.idle()


async def test_one_line_per_success_names_the_handler_and_the_times(harness, caplog):
    caplog.set_level(logging.INFO)
    await harness().service.generate(call(max_new_tokens=2, do_sample=True, seed=7))
    (record,) = [record for record in caplog.records if record.getMessage() == "Success"]
    ((name, fields),) = record.spans
    assert name == "generate"
    times = ["total_time", "validation_time", "queue_time", "inference_time", "time_per_token"]
    assert list(fields) == ["parameters", *times, "seed"]
    assert fields["parameters"].startswith("GenerateParameters { best_of: None, temperature: None, ")
    assert fields["queue_time"] == "2ms"
    assert fields["seed"] == "Some(7)"


async def test_prompts_and_answers_are_logged_at_debug_level_only(harness, caplog):
    caplog.set_level(logging.INFO)
    await harness().service.generate(call("Hello" * 1000, max_new_tokens=2))
    assert not [record for record in caplog.records if "put: " in record.getMessage()]
    caplog.set_level(logging.DEBUG, logger="neuron_server.router")
    await harness().service.generate(call("Hello" * 1000, max_new_tokens=2))
    said = [r.getMessage() for r in caplog.records if r.name.startswith("neuron_server.router")]
    assert said[-3:] == ["Input: " + "Hello" * 200, "Output: hh", "Success"]


async def test_a_refusal_is_logged_inside_its_handler(harness, caplog):
    with pytest.raises(ValidationError):
        await harness().service.generate(call(temperature=0.0))
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.getMessage() == "`temperature` must be strictly positive"
    assert record.spans[0][0] == "generate"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1.234567, "1.234567s"), (0.0125, "12.5ms"), (336.25e-6, "336.25µs"), (0.0, "0ns"), (60.0, "60s")],
)
def test_durations_read_as_tgis(seconds, text):
    assert human(seconds) == text
