"""Choice of replica, and requests that outlive their generator."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace

import pytest
from recorded_spans import Recorder, events

from neuron_server.backend import BackendInfo
from neuron_server.errors import GenerationError, GeneratorLostError, UnavailableError
from neuron_server.event import FinishReason, TokenEvent
from neuron_server.request import GenerationRequest, SamplingParams
from neuron_server.router.replicas import ReplicaSet
from neuron_server.session import Phase, Status
from neuron_server.shape import StaticShape


class FakeReplica:
    """Yields the index of each token as its id; is lost once, before the token of index ``lost_at``."""

    def __init__(self, *, batch_size=2, lost_at: int | None = None, lost_times=1, ready=True) -> None:
        self.info = BackendInfo(StaticShape(batch_size, 64), 32, 100)
        self.open_requests = 0
        self.silent = False
        self.requests: list[GenerationRequest] = []
        self.closed = 0
        self._lost_at, self._lost_times = lost_at, lost_times
        self._ready = asyncio.Event()
        self.set_ready(ready)

    def set_ready(self, ready: bool) -> None:
        self.status = Status(Phase.READY if ready else Phase.LOADING, free_slots=1, queued=1)
        if ready:
            self._ready.set()
        else:
            self._ready.clear()

    async def start(self): ...

    async def close(self): ...

    async def wait_ready(self):
        await self._ready.wait()

    async def stream(self, request):
        self.requests.append(request)
        self.open_requests += 1
        try:
            for n in range(request.max_new_tokens):
                index = request.generated + n
                await asyncio.sleep(0)
                if index == self._lost_at and self._lost_times:
                    self._lost_times -= 1
                    raise GeneratorLostError("killed")
                finish = FinishReason.LENGTH if n + 1 == request.max_new_tokens else None
                first = n == 0
                yield TokenEvent(
                    index,
                    finish=finish,
                    queue_s=0.1 if first else None,
                    prompt_logprobs=(None, -1.0) if first and request.prompt_logprobs else None,
                )
        finally:
            self.open_requests -= 1
            self.closed += 1


REQUEST = GenerationRequest((5, 6), 2, 6, SamplingParams(do_sample=True, seed=9), prompt_logprobs=True)


async def collect(source, request=REQUEST):
    return [event async for event in source.stream(request)]


async def test_most_free_slots_first():
    one, two = FakeReplica(batch_size=2), FakeReplica(batch_size=3)
    replicas = ReplicaSet([one, two])
    streams = [replicas.stream(REQUEST) for _ in range(5)]
    for stream in streams:
        await anext(stream)
    assert (one.open_requests, two.open_requests) == (2, 3)
    for stream in streams:
        await stream.aclose()
    assert (one.open_requests, two.open_requests) == (0, 0)


async def test_equals_take_turns():
    ones = [FakeReplica() for _ in range(3)]
    replicas = ReplicaSet(ones)
    for _ in range(9):
        await collect(replicas)  # nothing is open between two of them, so all are equal
    assert [len(one.requests) for one in ones] == [3, 3, 3]


async def test_a_replica_that_does_not_answer_is_passed_over_while_another_does():
    silent, full = FakeReplica(batch_size=9), FakeReplica(batch_size=1)
    silent.silent = True
    replicas = ReplicaSet([silent, full])
    streams = [replicas.stream(REQUEST) for _ in range(3)]
    for stream in streams:
        await anext(stream)
    assert (silent.open_requests, full.open_requests) == (0, 3)
    full.set_ready(False)
    streams.append(replicas.stream(REQUEST))
    await anext(streams[-1])  # better than nobody
    assert silent.open_requests == 1
    silent.silent = False
    for stream in streams:
        await stream.aclose()


async def test_many_requests_of_a_lost_replica_spread_over_the_others_at_once():
    dying, one, two = FakeReplica(batch_size=99, lost_at=2, lost_times=9), FakeReplica(), FakeReplica()
    replicas = ReplicaSet([dying, one, two])
    tasks = [asyncio.create_task(collect(replicas)) for _ in range(9)]
    for _ in range(2):
        await asyncio.sleep(0)
    assert len(dying.requests) == 9
    dying.set_ready(False)
    for answer in await asyncio.gather(*tasks):
        assert [event.token_id for event in answer] == [0, 1, 2, 3, 4, 5]
    assert sorted((len(one.requests), len(two.requests))) == [4, 5]


def test_each_replica_says_how_it_is():
    ready, silent, loading, lost, failed = (FakeReplica() for _ in range(5))
    silent.silent = True
    loading.set_ready(False)
    lost.status = Status(Phase.LOADING, detail="lost: no answer")
    failed.status = Status(Phase.FAILED, detail="out of memory")
    states = ReplicaSet([ready, silent, loading, lost, failed]).states
    assert [(s.rank, s.phase, s.up) for s in states] == [
        (0, "ready", True),
        (1, "not answering", False),
        (2, "loading", False),
        (3, "lost", False),
        (4, "failed", False),
    ]
    assert [(s.free_slots, s.queued) for s in states] == [(1, 1), *[(0, 0)] * 4]


async def test_a_lost_request_continues_elsewhere_exactly_where_it_was():
    first, second = FakeReplica(batch_size=9, lost_at=3), FakeReplica()
    events = await collect(ReplicaSet([first, second]))
    assert [event.token_id for event in events] == [0, 1, 2, 3, 4, 5]
    assert [event.finish is not None for event in events] == [False] * 5 + [True]
    resumed = second.requests or first.requests[1:]
    assert resumed[0].input_ids == (5, 6, 0, 1, 2)
    assert (resumed[0].prompt_length, resumed[0].max_new_tokens) == (2, 3)
    assert resumed[0].sampling == REQUEST.sampling
    assert not resumed[0].prompt_logprobs


async def test_first_event_facts_are_told_once():
    events = await collect(ReplicaSet([FakeReplica(lost_at=3)]))
    assert [event.queue_s for event in events] == [0.1, *[None] * 5]
    assert [event.prompt_logprobs is not None for event in events] == [True] + [False] * 5


async def test_a_request_lost_before_its_first_token_is_submitted_as_it_was():
    replica = FakeReplica(lost_at=0)
    events = await collect(ReplicaSet([replica]))
    assert replica.requests == [REQUEST, REQUEST]
    assert events[0].queue_s == 0.1


async def test_it_waits_for_the_restarted_generator():
    replica = FakeReplica(lost_at=2)
    replicas = ReplicaSet([replica])
    events = []
    async with aclosing(replicas.stream(REQUEST)) as stream:
        events.append(await anext(stream))
        events.append(await anext(stream))
        replica.set_ready(False)
        pending = asyncio.ensure_future(anext(stream))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not pending.done()
        assert replicas.phase is Phase.LOADING
        replica.set_ready(True)
        events.append(await pending)
    assert [event.token_id for event in events] == [0, 1, 2]


async def test_whoever_waits_for_a_generator_is_queued():
    replica = FakeReplica(ready=False)
    replicas = ReplicaSet([replica])
    pending = [asyncio.ensure_future(anext(replicas.stream(REQUEST))) for _ in range(3)]
    for _ in range(3):
        await asyncio.sleep(0)
    assert (replicas.queued, replicas.running, replicas.free_slots) == (3, 0, 0)
    replica.set_ready(True)
    await asyncio.gather(*pending)
    assert (replicas.queued, replicas.running, replicas.free_slots) == (1, 1, 1)  # as the replica says


async def test_each_resubmission_is_told():
    told = []
    replicas = ReplicaSet([FakeReplica(lost_at=3, lost_times=2)], on_resubmit=lambda: told.append(1))
    await collect(replicas)
    assert len(told) == 2


async def test_a_request_that_keeps_losing_generators_is_given_up():
    replica = FakeReplica(lost_at=1, lost_times=99)
    with pytest.raises(GenerationError, match="lost 3 times under this request"):
        await collect(ReplicaSet([replica]))
    assert len(replica.requests) == 3


async def test_waiting_has_an_end():
    replicas = ReplicaSet([FakeReplica(ready=False), FakeReplica(ready=False)], restart_wait_s=0.01)
    with pytest.raises(GeneratorLostError, match=r"no generator came back within 0\.01 s"):
        await collect(replicas)


async def test_a_replica_that_says_ready_and_is_not_is_tried_again():
    replica = FakeReplica()
    stream, tries = replica.stream, []

    async def not_yet(request):
        tries.append(request)
        if len(tries) < 3:
            raise UnavailableError("the generator is loading")
        async for event in stream(request):
            yield event

    replica.stream = not_yet
    assert len(await collect(ReplicaSet([replica]))) == 6


async def test_other_failures_pass_through_at_once():
    replica = FakeReplica()

    async def fails(request):
        raise GenerationError("bad token")
        yield

    replica.stream = fails
    with pytest.raises(GenerationError, match="bad token"):
        await collect(ReplicaSet([replica]))


async def test_closing_closes_below():
    replica = FakeReplica()
    stream = ReplicaSet([replica]).stream(REQUEST)
    await anext(stream)
    await stream.aclose()
    assert replica.closed == 1


async def test_a_request_that_is_cancelled_while_it_waits_leaves_nothing():
    replica = FakeReplica(ready=False)
    task = asyncio.create_task(collect(ReplicaSet([replica])))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert replica.requests == []


async def test_closing_the_set_ends_what_runs_and_what_waits():
    running, waiting = FakeReplica(lost_at=1), FakeReplica(ready=False)
    replicas = ReplicaSet([running])
    stream = replicas.stream(REQUEST)
    await anext(stream)
    await replicas.close()  # the replica loses its stream then
    with pytest.raises(UnavailableError, match="stopped before"):
        await anext(stream)
    replicas = ReplicaSet([waiting])
    task = asyncio.create_task(collect(replicas))
    await asyncio.sleep(0)
    await replicas.close()
    with pytest.raises(UnavailableError, match="stopped before"):
        await task


async def test_one_ready_replica_is_a_ready_set():
    loading, ready = FakeReplica(ready=False), FakeReplica()
    replicas = ReplicaSet([loading, ready])
    await replicas.wait_ready()
    assert replicas.phase is Phase.READY
    assert (replicas.queued, replicas.running) == (1, 1)
    assert replicas.info is not None


async def test_waiting_for_a_replica_ends_with_the_set():
    replicas = ReplicaSet([FakeReplica(ready=False)])
    task = asyncio.create_task(replicas.wait_ready())
    await asyncio.sleep(0)
    await replicas.close()
    with pytest.raises(UnavailableError, match="stopped"):
        await asyncio.wait_for(task, 1.0)


def test_a_set_needs_a_replica():
    with pytest.raises(ValueError, match="at least one"):
        ReplicaSet([])


async def test_each_submission_is_a_span_and_the_second_says_why():
    recorder = Recorder()
    replicas = ReplicaSet([FakeReplica(lost_at=2), FakeReplica(batch_size=1)], tracer=recorder.tracer)
    above = recorder.tracer.start("above")
    request = replace(REQUEST, traceparent=above.traceparent)
    assert len(await collect(replicas, request)) == 6
    above.end()
    name = "/neuronx_tgi.v1.Generator/Generate"
    assert recorder.tree() == {"above": {name: {}, f"{name}#2": {}}}
    lost, resumed = recorder.named(name)
    assert lost.status.description == "killed"
    assert events(resumed) == ["resumed"]
    assert resumed.events[0].attributes == {"reason": "killed", "tokens": 2}


async def test_the_generator_is_told_of_the_submission_s_span():
    recorder = Recorder()
    replica = FakeReplica()
    above = recorder.tracer.start("above")
    request = replace(REQUEST, traceparent=above.traceparent)
    async with aclosing(ReplicaSet([replica], tracer=recorder.tracer).stream(request)) as stream:
        await anext(stream)
    span = recorder.one("/neuronx_tgi.v1.Generator/Generate")
    assert replica.requests[0].traceparent.split("-")[2] == f"{span.context.span_id:016x}"
    assert events(span) == ["cancelled"]  # by whoever asked
