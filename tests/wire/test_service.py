"""The generator's edge as a client written by hand sees it: raw messages over a real socket."""

from __future__ import annotations

import asyncio
import re
import stat
from pathlib import Path

import grpc
import grpc.aio
import pytest
from conformance import NO_SHARD_RPC

from neuron_server.errors import GenerationError
from neuron_server.event import FinishReason, TokenEvent
from neuron_server.session import Phase, Status
from neuron_server.wire.pb import generator_pb2 as pb
from neuron_server.wire.service import SERVICE, serving, target


@pytest.fixture
async def channel(uds_path, source, closing):
    await closing.enter_async_context(serving(source, uds_path))
    return await closing.enter_async_context(grpc.aio.insecure_channel(target(uds_path)))


def generate(channel):
    return channel.stream_stream(
        f"/{SERVICE}/Generate", pb.GenerateRequest.SerializeToString, pb.StepEvents.FromString
    )()


def info(channel):
    return channel.unary_unary(
        f"/{SERVICE}/Info", pb.InfoRequest.SerializeToString, pb.InfoResponse.FromString
    )(pb.InfoRequest())


def health(channel):
    return channel.unary_unary(
        f"/{SERVICE}/Health", pb.HealthRequest.SerializeToString, pb.HealthResponse.FromString
    )(pb.HealthRequest())


def submit(request_id: int, **changes) -> pb.GenerateRequest:
    fields = {"input_ids": [1, 2, 3], "prompt_length": 3, "max_new_tokens": 5, **changes}
    return pb.GenerateRequest(submit=pb.Submit(request_id=request_id, **fields))


def cancel(request_id: int) -> pb.GenerateRequest:
    return pb.GenerateRequest(cancel=pb.Cancel(request_id=request_id))


def test_the_socket_is_its_owner_s_alone(channel, uds_path):
    assert stat.S_IMODE(Path(uds_path).stat().st_mode) == 0o600


async def test_a_path_with_spaces_and_percent_signs_is_a_path(source, tmp_path):
    path = str(tmp_path / "a 100%25 #path")
    async with serving(source, path), grpc.aio.insecure_channel(target(path)) as channel:
        assert "a 100%25 #path" in [child.name for child in tmp_path.iterdir()]
        assert (await health(channel)).phase == pb.PHASE_READY


async def test_the_socket_file_goes_with_the_server(source, uds_path):
    folder = Path(uds_path).parent
    async with serving(source, uds_path):
        assert len(list(folder.iterdir())) == 1
    assert list(folder.iterdir()) == []


@pytest.mark.case(182, deviation=NO_SHARD_RPC)
async def test_info_says_what_is_constant(channel):
    answer = await info(channel)
    assert (answer.batch_size, answer.max_length, answer.vocab_size) == (4, 128, 1000)


async def test_info_before_ready_is_a_failed_precondition_that_says_why(channel, source):
    source.status = Status(Phase.WARMING_UP)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await info(channel)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert caught.value.details() == "the model is warming up"


async def test_health_answers_in_every_phase(channel, source):
    for phase, code in ((Phase.LOADING, pb.PHASE_LOADING), (Phase.FAILED, pb.PHASE_FAILED)):
        source.status = Status(phase, 1, 2, "detail")
        answer = await health(channel)
        assert answer == pb.HealthResponse(phase=code, free_slots=1, queued=2, detail="detail")


async def test_the_events_of_one_step_are_one_message_for_all_requests(channel, source):
    call = generate(channel)
    for request_id in range(100):
        await call.write(submit(request_id))
    session = await source.until_open(100)
    session.decode(11)
    session.emit([(5, TokenEvent(12))], free_slots=2, queued=9)
    first, second = await call.read(), await call.read()
    assert [t.request_id for t in first.tokens] == list(range(100))
    assert [t.token_id for t in second.tokens] == [12]
    assert (second.free_slots, second.queued) == (2, 9)
    call.cancel()


MALFORMED = {
    "no ids": ({"input_ids": [], "prompt_length": 0}, "input_ids is empty"),
    "longer than the slot": (
        {"max_new_tokens": 126},
        "3 input_ids and max_new_tokens 126 exceed a slot of 128",
    ),
    "id outside the vocabulary": ({"input_ids": [1, 1000, 3]}, "input_ids has 1000.*1000 tokens"),
    "more prompt than ids": ({"prompt_length": 4}, "prompt_length is 4; with 3 input_ids it is 1 to 3"),
    "no prompt": ({"prompt_length": 0}, "prompt_length is 0"),
    "no new tokens": ({"max_new_tokens": 0}, "max_new_tokens is 0; it must be at least 1"),
    "prompt longer than the prefill": (
        {"input_ids": [1] * 101, "prompt_length": 101},
        "prompt_length is 101; the longest prompt is 100",
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_a_malformed_submission_ends_alone(channel, source, name):
    changes, message = MALFORMED[name]
    call = generate(channel)
    await call.write(submit(1))
    await call.write(submit(2, **changes))
    answer = await call.read()
    (failed,) = answer.errors
    assert failed.request_id == 2
    assert failed.error_type == "validation"
    assert re.search(message, failed.message)
    session = await source.until_open(1)
    assert session.submitted == [1]
    session.decode(11)
    assert [t.request_id for t in (await call.read()).tokens] == [1]
    call.cancel()


BAD_SAMPLING = {
    "temperature": [0.0, -1.0, float("nan"), float("inf")],
    "top_p": [0.0, 1.5, float("nan")],
    "typical_p": [0.0, 1.01],
    "repetition_penalty": [0.0, -0.5, float("nan")],
    "frequency_penalty": [float("inf"), float("nan")],
    "top_n_tokens": [1001],
}
NEUTRAL = {"temperature": 1.0, "top_p": 1.0, "typical_p": 1.0, "repetition_penalty": 1.0}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name in BAD_SAMPLING for value in BAD_SAMPLING[name]]
)
async def test_sampling_that_cannot_be_computed_is_refused_by_name(channel, source, name, value):
    call = generate(channel)
    await call.write(submit(1, sampling=pb.SamplingParams(**{**NEUTRAL, name: value})))
    (failed,) = (await call.read()).errors
    assert failed.message.startswith(f"{name} is {value}; it must be ")
    call.cancel()


async def test_a_resumed_request_may_hold_more_ids_than_the_longest_prompt(channel, source):
    call = generate(channel)
    await call.write(submit(1, input_ids=[1] * 120, prompt_length=100, max_new_tokens=8))
    session = await source.until_open(1)
    assert session.open[1].generated == 20
    call.cancel()


async def test_an_id_that_is_open_already_ends_both_requests(channel, source):
    call = generate(channel)
    await call.write(submit(1))
    await call.write(submit(1))
    (failed,) = (await call.read()).errors
    assert (failed.request_id, failed.error_type) == (1, "validation")
    assert source.session.cancelled == [1]
    await call.write(submit(1))  # and is free again
    await source.until_open(1)
    call.cancel()


async def test_a_submission_before_ready_is_unavailable(channel, source):
    source.status = Status(Phase.LOADING)
    call = generate(channel)
    await call.write(submit(1))
    (failed,) = (await call.read()).errors
    assert (failed.error_type, failed.message) == ("unavailable", "the model is loading")
    call.cancel()


async def test_an_empty_message_is_ignored(channel, source):
    call = generate(channel)
    await call.write(pb.GenerateRequest())
    await call.write(submit(1))
    await source.until_open(1)
    call.cancel()


async def test_cancelling_the_call_closes_its_session_alone(channel, source):
    ended = generate(channel)
    await ended.write(submit(1))
    await source.until_open(1)
    staying = generate(channel)
    await staying.write(submit(1))
    await source.until(lambda: len(source.sessions) == 2 and source.session.open)
    ended.cancel()
    await source.sessions[0].closed.wait()
    assert not source.sessions[1].closed.is_set()
    staying.cancel()
    await source.sessions[1].closed.wait()


async def test_a_half_closed_call_ends_with_its_last_request(channel, source):
    call = generate(channel)
    await call.write(submit(1))
    await call.write(submit(2))
    await call.write(submit(3))
    await call.done_writing()
    session = await source.until_open(3)
    session.emit([(1, TokenEvent(5, finish=FinishReason.LENGTH))])
    session.emit(errors=[(2, GenerationError("no"))])
    session.emit([(3, TokenEvent(5))])
    session.emit([(3, TokenEvent(6, finish=FinishReason.EOS_TOKEN))])
    assert len([message async for message in call]) == 4
    assert await call.code() is grpc.StatusCode.OK
    assert session.closed.is_set()


async def test_a_call_half_closed_with_nothing_open_ends_at_once(channel, source):
    call = generate(channel)
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    await source.session.closed.wait()


async def test_a_source_that_ends_ends_the_call(channel, source):
    call = generate(channel)
    await call.write(submit(1))
    session = await source.until_open(1)
    session.close()
    assert await call.read() is grpc.aio.EOF


async def test_a_session_that_breaks_fails_the_call_instead_of_leaving_it_silent(channel, source):
    call = generate(channel)
    await call.write(submit(1))
    session = await source.until_open(1)
    session.cancel = None  # a bug: not callable
    await call.write(cancel(1))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.UNKNOWN
    assert session.closed.is_set()


async def test_bytes_that_are_no_message_end_their_call_only(channel, source, uds_path):
    raw = channel.stream_stream(f"/{SERVICE}/Generate")()
    await raw.write(b"\xff\xff\xff\xff")
    with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
        await raw.read()
    assert (await health(channel)).phase == pb.PHASE_READY
