"""Sessions: steps, merging, cancels, and what each connection hears."""

from __future__ import annotations

import pytest
from conformance import NO_SHARD_RPC
from gated_loop import Gate, ask, collect, finished, running, take, tokens_of
from model_backend import ModelBackend, expected_events, without_times

from neuron_server.engine.loop_session import MAX_PASSES, LoopSession
from neuron_server.errors import (
    NeuronTgiError,
    ValidationError,
)
from neuron_server.session import Pass, Phase, Status, Step


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


@pytest.mark.case(93)
@pytest.mark.case(176, deviation=NO_SHARD_RPC)
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


@pytest.mark.case(178)
@pytest.mark.parametrize("mode", ["insert", "rebuild"])
async def test_cancelled_during_its_own_prefill_it_leaves_those_that_run_as_they_are(mode: str) -> None:
    gate, decode = Gate(), Gate()
    backend = ModelBackend(2, 30, mode=mode, on_prefill=gate, on_decode=decode)
    async with running(backend) as loop:
        decode.closed = True
        runs, joins = loop.open_session(), loop.open_session()
        stays = ask(1, 2, new=20)
        runs.submit(1, stays)
        steps = [await anext(runs.steps())]
        gate.closed = True
        joins.submit(1, ask(3, 4, new=20))
        decode.open()
        await gate.entered()  # the joiner's prefill, with the running request in it where it rebuilds
        joins.cancel(1)
        gate.open()
        steps += await take(runs, finished(1))
        assert without_times(tokens_of(steps, 1)) == expected_events(stays, 50)
        assert len([call for call, _ in backend.calls if call == "prefill"]) == 2
        assert loop.status.free_slots == 2
        assert await collect(loop, ask(5, 6))


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


@pytest.mark.case(93)
async def test_closing_a_stream_early_frees_its_slot() -> None:
    backend = ModelBackend(1, 30)
    async with running(backend) as loop:
        stream = loop.stream(ask(1, 2, new=28))
        await anext(stream)
        await stream.aclose()
        assert await collect(loop, ask(3, 4))  # could not run otherwise


@pytest.mark.case(177, deviation=NO_SHARD_RPC)
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
        assert [(n, type(e)) for step in steps for n, e in step.errors] == [(1, ValidationError)]
        assert len(tokens_of(steps, 2)) == 3
        with pytest.raises(ValidationError):
            await collect(loop, ask(1, 2, 3, 4))


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


# -- passes --------------------------------------------------------------------------------------------------


def passes_of(steps: list[Step]) -> list[Pass]:
    return [one for step in steps for one in step.passes]


async def test_every_session_learns_of_every_pass_and_never_twice() -> None:
    gate = Gate()
    async with running(ModelBackend(4, 30, on_decode=gate)) as loop:
        gate.closed = True
        first, second, idle = loop.open_session(), loop.open_session(), loop.open_session()
        first.submit(1, ask(1, 2, new=5))
        second.submit(1, ask(3, 4, new=9))
        for _ in range(4):
            gate.let_go()
        one = passes_of(await take(first, finished(1)))  # the batch waits in its fifth decode
        gate.open()
        other = passes_of(await take(second, finished(1)))
        assert [p.method for p in other].count("prefill") == 2
        assert sum(p.tokens for p in other if p.method == "decode") == 4 + 8
        assert one == other[: len(one)]
        rest = passes_of(await take(first, lambda steps: bool(steps)))
        assert one + rest == other  # what came after its last token: told once the batch is empty
        assert passes_of(await take(idle, lambda steps: bool(steps))) == other


async def test_warming_up_is_no_pass() -> None:
    async with running(ModelBackend(2, 30)) as loop:
        session = loop.open_session()
        session.submit(1, ask(1, 2, new=1))
        assert [p.method for p in passes_of(await take(session, finished(1)))] == ["prefill"]


async def test_a_cancelled_request_leaves_its_passes_behind() -> None:
    gate = Gate()
    async with running(ModelBackend(2, 30, on_decode=gate)) as loop:
        gate.closed = True
        session = loop.open_session()
        session.submit(1, ask(1, 2, new=20))
        await gate.entered()
        session.cancel(1)
        gate.open()
        steps = await take(session, lambda steps: len(passes_of(steps)) == 2)
        assert [p.method for p in passes_of(steps)] == ["prefill", "decode"]
        assert tokens_of(steps, 1) == []


async def test_the_pass_that_the_device_died_in_comes_with_the_errors() -> None:
    backend = ModelBackend(2, 30)
    async with running(backend) as loop:
        session = loop.open_session()
        backend.on_decode = lambda _: backend.fail()
        session.submit(1, ask(1, 2))
        passes = passes_of(await take(session, finished(1)))
        assert [(p.method, p.failed) for p in passes] == [("prefill", False), ("decode", True)]


class Nowhere:
    """A loop that does nothing."""

    status = Status(Phase.READY)

    def enqueue(self, *_: object) -> None: ...

    def withdraw(self, *_: object) -> None: ...

    def forget(self, *_: object) -> None: ...


async def test_passes_alone_make_a_step_only_when_many_have_gathered() -> None:
    session = LoopSession(Nowhere())
    session.measured([Pass("decode", 1)] * 63, now=False)
    assert not session._wake.is_set()
    session.measured([Pass("decode", 2)], now=False)
    steps = await take(session, lambda steps: bool(steps))
    assert len(passes_of(steps)) == 64
    session.measured([], now=True)
    assert not session._wake.is_set()


async def test_a_consumer_that_fetches_nothing_costs_bounded_memory() -> None:
    session = LoopSession(Nowhere())
    for rows in range(MAX_PASSES + 10):
        session.measured([Pass("decode", rows)], now=False)
    passes = passes_of(await take(session, lambda steps: bool(steps)))
    assert [p.rows for p in passes] == list(range(10, MAX_PASSES + 10))
