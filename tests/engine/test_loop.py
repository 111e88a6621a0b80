"""The life of the loop: load, warm up, run, fail, close."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest
from gated_loop import EAGER, Gate, ask, collect, finished, running, take
from model_backend import ModelBackend, expected_events, random_request, without_times

from neuron_server.engine.loop import EngineLoop
from neuron_server.engine.schedule import Policy
from neuron_server.errors import (
    DeviceFailedError,
    GenerationError,
    ModelError,
    UnavailableError,
)
from neuron_server.session import Phase


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


@pytest.mark.case(71)
@pytest.mark.parametrize("mode", ["insert", "rebuild"])
async def test_four_equal_requests_at_once_make_the_same_tokens(mode: str) -> None:
    request = ask(1, 2, 3, new=20)
    async with running(ModelBackend(3, 30, mode=mode), Policy()) as loop:  # one of them has to wait
        answers = await asyncio.gather(*(collect(loop, request) for _ in range(4)))
    assert [without_times(events) for events in answers] == [expected_events(request, 50)] * 4


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
        assert type(error) is DeviceFailedError  # so that the router resumes them elsewhere
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
