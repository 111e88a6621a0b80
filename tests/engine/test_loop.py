"""The loop against a backend whose calls wait for the test: events instead of sleeps."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import numpy as np
import pytest
from model_backend import ModelBackend, expected_events, random_request, without_times

from neuron_server.engine.loop import EngineLoop
from neuron_server.engine.schedule import Policy
from neuron_server.errors import (
    DeviceFailedError,
    GenerationError,
    ModelError,
    NeuronTgiError,
    PromptTooLongError,
    UnavailableError,
    ValidationError,
)
from neuron_server.event import TokenEvent
from neuron_server.request import GenerationRequest
from neuron_server.session import Phase, Session, Step

EAGER = Policy(waiting_served_ratio=0.0)


def ask(*tokens: int, new: int = 3) -> GenerationRequest:
    return GenerationRequest(tokens, len(tokens), new)


@asynccontextmanager
async def running(backend: ModelBackend, policy: Policy = EAGER) -> AsyncIterator[EngineLoop]:
    loop = EngineLoop(lambda: backend, policy)
    loop.start()
    await loop.ready()
    backend.calls.clear()
    try:
        yield loop
    finally:
        await loop.close()


class Gate:
    """Holds the engine's thread inside a call of the backend until the test lets it go."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._entered = asyncio.Event()
        self._release = threading.Semaphore(0)
        self.closed = False

    def __call__(self, rows: object) -> None:
        if self.closed:
            self._loop.call_soon_threadsafe(self._entered.set)
            self._release.acquire()

    async def entered(self) -> None:
        await self._entered.wait()
        self._entered.clear()

    def let_go(self) -> None:
        self._release.release()

    def open(self) -> None:
        self.closed = False
        self._release.release(100)


async def take(session: Session, until: Callable[[list[Step]], bool]) -> list[Step]:
    """Steps of a session until they satisfy the test."""
    steps: list[Step] = []
    iterator = session.steps()
    while not until(steps):
        steps.append(await anext(iterator))
    return steps


def finished(count: int) -> Callable[[list[Step]], bool]:
    def done(steps: list[Step]) -> bool:
        ends = sum(event.finish is not None for step in steps for _, event in step.tokens)
        return ends + sum(len(step.errors) for step in steps) >= count

    return done


def tokens_of(steps: list[Step], request_id: int) -> list[TokenEvent]:
    return [event for step in steps for number, event in step.tokens if number == request_id]


async def collect(loop: EngineLoop, request: GenerationRequest) -> list[TokenEvent]:
    return [event async for event in loop.stream(request)]


@pytest.mark.parametrize("mode", ["insert", "rebuild"])
async def test_64_streams_at_once_are_each_as_alone(mode: str) -> None:
    rng = np.random.default_rng(0)
    requests = [random_request(rng, length=30, prompt=15, vocab=50) for _ in range(64)]
    backend = ModelBackend(4, 30, prompt=15, mode=mode)
    async with running(backend, Policy()) as loop:
        answers = await asyncio.gather(*(collect(loop, request) for request in requests))
        for request, events in zip(requests, answers, strict=True):
            assert without_times(events) == expected_events(request, 50)
        assert (loop.status.free_slots, loop.status.queued) == (4, 0)
    assert not backend.live
    assert backend.closed == 1


async def test_one_item_per_step_holds_all_requests_of_the_session() -> None:
    gate = Gate()
    async with running(ModelBackend(4, 30, on_decode=gate)) as loop:
        gate.closed = True
        session, other = loop.open_session(), loop.open_session()
        session.submit(1, ask(1, 2, new=4))
        session.submit(2, ask(3, 4, new=4))
        other.submit(1, ask(5, 6, new=4))
        steps = session.steps()
        await gate.entered()  # all three are placed, the first decode waits
        placed = await anext(steps)
        assert [number for number, _ in placed.tokens] == [1, 2]
        for free_slots in (1, 1, 4):
            gate.let_go()
            step = await anext(steps)
            assert sorted(number for number, _ in step.tokens) == [1, 2]
            assert (step.free_slots, step.queued) == (free_slots, 0)
        gate.open()
        assert len(tokens_of(await take(other, finished(1)), 1)) == 4


async def test_a_slow_consumer_gets_its_steps_merged_in_order() -> None:
    async with running(ModelBackend(4, 30)) as loop:
        slow, probe = loop.open_session(), loop.open_session()
        first, second = ask(1, 2, new=9), ask(3, 4, new=12)
        slow.submit(1, first)
        slow.submit(2, second)
        probe.submit(1, ask(5, 6, new=20))  # ends last
        await take(probe, finished(1))
        steps = await take(slow, finished(2))
        assert len(steps) == 1
        assert without_times(tokens_of(steps, 1)) == expected_events(first, 50)
        assert without_times(tokens_of(steps, 2)) == expected_events(second, 50)
        assert steps[0].free_slots == 4


async def test_health_answers_while_a_prefill_runs() -> None:
    gate = Gate()
    async with running(ModelBackend(2, 30, on_prefill=gate)) as loop:
        gate.closed = True
        session = loop.open_session()
        for number in range(3):
            session.submit(number, ask(1, 2))
        await gate.entered()
        status = loop.status
        assert (status.phase, status.free_slots, status.queued) == (Phase.READY, 2, 3)
        assert loop.info.shape.batch_size == 2
        gate.open()
        await take(session, finished(3))
        assert (loop.status.free_slots, loop.status.queued) == (2, 0)


async def test_a_cancel_frees_the_slot_before_the_next_decode() -> None:
    gate = Gate()
    backend = ModelBackend(2, 30, on_decode=gate)
    async with running(backend) as loop:
        session = loop.open_session()
        gate.closed = True
        session.submit(1, ask(1, 2, new=20))
        session.submit(2, ask(3, 4, new=4))
        await gate.entered()  # the decode of both
        session.cancel(1)
        session.cancel(77)
        gate.let_go()
        await gate.entered()
        gate.open()
        steps = await take(session, finished(1))
        decodes = [rows for call, rows in backend.calls if call == "decode"]
        assert [slot for slot, _ in decodes[0]] == [0, 1]
        assert all([slot for slot, _ in rows] == [1] for rows in decodes[1:])
        assert tokens_of(steps, 1) == []
        assert without_times(tokens_of(steps, 2)) == expected_events(ask(3, 4, new=4), 50)


async def test_cancelled_while_queued_never_prefills() -> None:
    gate = Gate()
    backend = ModelBackend(1, 30, on_prefill=gate)
    async with running(backend) as loop:
        gate.closed = True
        session = loop.open_session()
        session.submit(1, ask(1, 2))
        session.submit(2, ask(3, 4, 5))
        session.submit(3, ask(6, 7))
        await gate.entered()
        session.cancel(2)
        assert loop.status.queued == 2
        gate.open()
        await take(session, finished(2))
        assert [rows for call, rows in backend.calls if call == "prefill"] == [[(0, 2)], [(0, 2)]]


async def test_a_cancelled_id_can_be_used_again_and_hears_nothing_of_its_past() -> None:
    gate = Gate()
    async with running(ModelBackend(2, 30, on_decode=gate)) as loop:
        session = loop.open_session()
        gate.closed = True
        session.submit(1, ask(1, 2, new=9))
        await gate.entered()
        session.cancel(1)
        again = ask(3, 4, new=5)
        session.submit(1, again)
        gate.open()
        steps = await take(session, finished(1))
        assert without_times(tokens_of(steps, 1)) == expected_events(again, 50)


async def test_an_id_that_is_still_open_ends_both_requests() -> None:
    async with running(ModelBackend(2, 30)) as loop:
        session = loop.open_session()
        session.submit(1, ask(1, 2, new=20))
        session.submit(1, ask(3, 4))
        steps = await take(session, finished(1))
        assert [(number, type(error)) for step in steps for number, error in step.errors] == [
            (1, ValidationError)
        ]
        assert await collect(loop, ask(5, 6))
        assert loop.status.free_slots == 2


async def test_closing_a_stream_early_frees_its_slot() -> None:
    backend = ModelBackend(1, 30)
    async with running(backend) as loop:
        stream = loop.stream(ask(1, 2, new=28))
        await anext(stream)
        await stream.aclose()
        assert await collect(loop, ask(3, 4))  # could not run otherwise


async def test_closing_a_session_cancels_all_of_it_and_ends_its_steps() -> None:
    gate = Gate()
    backend = ModelBackend(2, 30, on_decode=gate)
    async with running(backend) as loop:
        gate.closed = True
        session, other = loop.open_session(), loop.open_session()
        for number in range(5):
            session.submit(number, ask(1, 2, new=20))
        await gate.entered()
        session.close()
        session.close()
        assert [step async for step in session.steps()] == []
        session.submit(9, ask(1, 2))  # into the void
        other.submit(1, ask(3, 4))
        gate.open()
        assert await take(other, finished(1))
        assert (loop.status.free_slots, loop.status.queued) == (2, 0)


async def test_what_is_wrong_with_a_request_comes_back_as_its_error_alone() -> None:
    async with running(ModelBackend(2, 30, prompt=3)) as loop:
        session = loop.open_session()
        session.submit(1, ask(1, 2, 3, 4))
        session.submit(2, ask(5, 6))
        steps = await take(session, finished(2))
        assert [(n, type(e)) for step in steps for n, e in step.errors] == [(1, PromptTooLongError)]
        assert len(tokens_of(steps, 2)) == 3
        with pytest.raises(PromptTooLongError):
            await collect(loop, ask(1, 2, 3, 4))


async def test_phases_from_loading_to_ready() -> None:
    loading = threading.Event()
    seen = Gate()
    seen.closed = True
    backend = ModelBackend(2, 30, on_prefill=seen)

    def load() -> ModelBackend:
        loading.wait()
        return backend

    loop = EngineLoop(load)
    assert loop.status.phase is Phase.LOADING
    loop.start()
    with pytest.raises(UnavailableError, match="loading"):
        _ = loop.info
    early = asyncio.create_task(collect(loop, ask(1, 2)))  # waits for the model
    loading.set()
    await seen.entered()
    assert loop.status.phase is Phase.WARMING_UP
    with pytest.raises(UnavailableError, match="warming up"):
        _ = loop.info
    seen.open()
    await loop.ready()
    assert loop.status.phase is Phase.READY
    assert loop.info is backend.info
    assert len(await early) == 3
    await loop.close()


@pytest.mark.parametrize("error", [ModelError("weights are missing"), RuntimeError("boom"), SystemExit(3)])
async def test_a_load_that_fails_fails_everything_that_waited(error: BaseException) -> None:
    release = threading.Event()
    fatal: list[BaseException] = []

    def load() -> ModelBackend:
        release.wait()
        raise error

    loop = EngineLoop(load, on_fatal=fatal.append)
    loop.start()
    waiting = asyncio.create_task(collect(loop, ask(1, 2)))
    await asyncio.sleep(0)
    release.set()
    with pytest.raises(type(error)):
        await loop.ready()
    assert loop.status.phase is Phase.FAILED
    assert str(error) in loop.status.detail
    assert fatal == [error]
    with pytest.raises(GenerationError, match=str(error)):
        await waiting
    with pytest.raises(GenerationError, match=str(error)):
        await collect(loop, ask(1, 2))
    await loop.close()


@pytest.mark.parametrize("when", ["on_prefill", "on_decode"])
async def test_a_dead_device_gives_every_open_request_its_words(when: str) -> None:
    fatal: list[BaseException] = []
    gate = Gate()
    backend = ModelBackend(2, 30)
    loop = EngineLoop(lambda: backend, EAGER, on_fatal=fatal.append)
    loop.start()
    await loop.ready()

    def die(rows: object) -> None:
        gate(rows)
        backend.fail()

    gate.closed = True
    setattr(backend, when, die)
    session, other = loop.open_session(), loop.open_session()
    for number in range(3):
        session.submit(number, ask(1, 2, new=9))
    other.submit(7, ask(3, 4))
    await gate.entered()
    gate.open()
    steps = await take(session, finished(3))
    errors = dict(pair for step in steps for pair in step.errors)
    assert sorted(errors) == [0, 1, 2]
    for error in errors.values():
        assert type(error) is GenerationError
        assert "execution status 1006" in str(error)
    assert len((await take(other, finished(1)))[-1].errors) == 1
    assert [type(error) for error in fatal] == [DeviceFailedError]
    assert loop.status.phase is Phase.FAILED
    assert "1006" in loop.status.detail
    with pytest.raises(UnavailableError, match="1006"):
        _ = loop.info
    await loop.close()
    assert backend.closed == 1
    assert len(fatal) == 1


async def test_close_while_running_tells_every_open_request_and_gives_the_device_back() -> None:
    gate = Gate()
    backend = ModelBackend(2, 30, on_decode=gate)
    loop = EngineLoop(lambda: backend, EAGER)
    loop.start()
    await loop.ready()
    gate.closed = True
    session = loop.open_session()
    for number in range(3):
        session.submit(number, ask(1, 2, new=20))
    await gate.entered()
    closing = asyncio.create_task(loop.close())
    steps = [step async for step in session.steps()]
    errors = dict(pair for step in steps for pair in step.errors)
    assert {type(error) for error in errors.values()} == {UnavailableError}
    assert len(errors) == 3
    assert not backend.closed
    gate.open()
    await closing
    assert backend.closed == 1
    decodes = [call for call, _ in backend.calls if call == "decode"]
    await loop.close()
    assert [call for call, _ in backend.calls if call == "decode"] == decodes
    late = loop.open_session()
    late.submit(1, ask(1, 2))
    assert isinstance((await take(late, finished(1)))[0].errors[0][1], UnavailableError)


async def test_close_does_not_wait_for_ever_for_a_call_that_hangs() -> None:
    gate = Gate()
    backend = ModelBackend(2, 30, on_prefill=gate)
    loop = EngineLoop(lambda: backend, EAGER)
    loop.start()
    await loop.ready()
    gate.closed = True
    session = loop.open_session()
    session.submit(1, ask(1, 2))
    await gate.entered()
    await loop.close(timeout_s=0.01)
    assert not backend.closed
    gate.open()
    await loop.close()
    assert backend.closed == 1


async def test_close_before_start_and_during_loading() -> None:
    never = EngineLoop(ModelBackend)
    await never.close()
    release = threading.Event()
    backend = ModelBackend()

    def load() -> ModelBackend:
        release.wait()
        return backend

    loop = EngineLoop(load)
    loop.start()
    closing = asyncio.create_task(loop.close())
    with pytest.raises(UnavailableError):
        await loop.ready()
    release.set()
    await closing
    assert backend.calls == []  # no warm-up for nobody
    assert backend.closed == 1


async def test_a_backend_that_does_not_close_is_only_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Stuck(ModelBackend):
        def close(self) -> None:
            raise OSError("device busy")

    async with running(Stuck()):
        pass
    assert "did not close" in caplog.text


async def test_the_backend_is_touched_by_one_thread_only() -> None:
    names: set[str] = set()

    def note(rows: object) -> None:
        names.add(threading.current_thread().name)

    def load() -> ModelBackend:
        note(())
        return ModelBackend(2, 30, on_prefill=note, on_decode=note)

    loop = EngineLoop(load)
    loop.start()
    await loop.ready()
    await collect(loop, ask(1, 2))
    await loop.close()
    assert names == {"engine"}


async def test_an_idle_loop_sleeps() -> None:
    """No calls of the backend and no turn of the thread without a command."""
    backend = ModelBackend(2, 30)
    async with running(backend) as loop:
        await collect(loop, ask(1, 2))
        calls = len(backend.calls)
        for _ in range(100):
            await asyncio.sleep(0)
        assert len(backend.calls) == calls
        assert await collect(loop, ask(3, 4))


async def test_cancels_and_errors_alone_wake_an_idle_loop_without_harm() -> None:
    async with running(ModelBackend(1, 30, prompt=2)) as loop:
        for _ in range(20):
            session = loop.open_session()
            session.submit(1, ask(1, 2, new=25))
            session.submit(2, ask(1, 2, 3))
            session.cancel(1)
            steps = await take(session, finished(1))
            assert isinstance(steps[0].errors[0][1], NeuronTgiError)
            session.close()
        assert await collect(loop, ask(3, 4))
        assert loop.status.free_slots == 1
