"""The loop compiles before it queues: streams go on meanwhile, cancels and failures find the request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from alternating import GRAMMAR, Alternating
from gated_loop import EAGER, ask, collect, finished, take, tokens_of
from model_backend import ModelBackend, without_times

from neuron_server.engine.loop import EngineLoop
from neuron_server.errors import GenerationError, UnavailableError, ValidationError
from neuron_server.grammar import Constraint, Grammar
from neuron_server.request import GenerationRequest

ODD = [1, 3, 5, 7, 9]


class Compiler:
    """Compiles when the test says so; ``stop_ids`` are those it was called with, in order."""

    def __init__(self, made: Callable[[], Constraint | BaseException]) -> None:
        self._made = made
        self.go_on = asyncio.Event()
        self.called = asyncio.Event()
        self.stop_ids: list[frozenset[int]] = []
        self.cancelled = 0

    async def __call__(self, grammar: Grammar, stop_ids: frozenset[int]) -> Constraint:
        assert grammar == GRAMMAR
        self.stop_ids.append(stop_ids)
        self.called.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        made = self._made()
        if isinstance(made, BaseException):
            raise made
        return made


@asynccontextmanager
async def looping(backend: ModelBackend, compiler: Compiler | None) -> AsyncIterator[EngineLoop]:
    loop = EngineLoop(lambda: backend, EAGER, compile=compiler)
    loop.start()
    await loop.ready()
    backend.calls.clear()
    try:
        yield loop
    finally:
        await loop.close()


def constrained(*tokens: int, new: int = 3) -> GenerationRequest:
    return replace(ask(*tokens, new=new), grammar=GRAMMAR, stop_ids=frozenset({0}))


async def test_a_running_stream_goes_on_while_a_grammar_compiles() -> None:
    compiler = Compiler(lambda: Alternating([ODD]))
    async with looping(ModelBackend(2, 64), compiler) as loop:
        session = loop.open_session()
        session.submit(1, constrained(1, 2))
        await compiler.called.wait()
        assert len(await collect(loop, ask(3, 4, new=30))) == 30  # from its first token to its last
        assert (loop.status.free_slots, loop.status.queued) == (2, 1)
        compiler.go_on.set()
        steps = await take(session, finished(1))
        assert all(event.token_id in ODD for event in tokens_of(steps, 1))
        assert compiler.stop_ids == [frozenset({0})]


async def test_a_cancelled_request_is_compiled_no_further_and_never_prefills() -> None:
    compiler = Compiler(lambda: Alternating([ODD]))
    backend = ModelBackend(2, 30)
    async with looping(backend, compiler) as loop:
        session = loop.open_session()
        session.submit(1, constrained(1, 2))
        await compiler.called.wait()
        session.cancel(1)
        await collect(loop, ask(3, 4))
        assert compiler.cancelled == 1
        assert loop.status.queued == 0
        assert len([call for call in backend.calls if call[0] == "prefill"]) == 1


@pytest.mark.parametrize("error", [ValidationError("grammar is not valid: x"), GenerationError("lost")])
async def test_what_is_wrong_with_a_grammar_is_the_requests_answer(error) -> None:
    compiler = Compiler(lambda: error)
    compiler.go_on.set()
    async with looping(ModelBackend(2, 30), compiler) as loop:
        with pytest.raises(type(error), match=str(error)):
            await collect(loop, constrained(1, 2))
        assert (loop.status.free_slots, loop.status.queued) == (2, 0)
        assert len(await collect(loop, ask(1, 2))) == 3


async def test_a_compiler_that_is_broken_fails_its_request_alone() -> None:
    compiler = Compiler(lambda: ZeroDivisionError("a defect"))
    compiler.go_on.set()
    async with looping(ModelBackend(2, 30), compiler) as loop:
        with pytest.raises(GenerationError, match=r"^the grammar could not be compiled$"):
            await collect(loop, constrained(1, 2))
        assert len(await collect(loop, ask(1, 2))) == 3


async def test_without_a_compiler_grammars_are_refused() -> None:
    async with looping(ModelBackend(2, 30), None) as loop:
        with pytest.raises(ValidationError, match=r"^grammar is not supported$"):
            await collect(loop, constrained(1, 2))


async def test_closing_answers_what_is_being_compiled() -> None:
    compiler = Compiler(lambda: Alternating([ODD]))
    async with looping(ModelBackend(2, 30), compiler) as loop:
        session = loop.open_session()
        session.submit(1, constrained(1, 2))
        await compiler.called.wait()
        await loop.close()
        [step] = [step async for step in session.steps()]
        [(number, error)] = step.errors
        assert number == 1
        assert isinstance(error, UnavailableError)
    await asyncio.sleep(0)
    assert compiler.cancelled == 1


@pytest.mark.parametrize("mode", ["insert", "rebuild"])
async def test_a_resumed_request_goes_on_where_its_text_stands(mode) -> None:
    compiler = Compiler(lambda: Alternating([[2, 4, 6], ODD, [20, 21]]))
    compiler.go_on.set()
    async with looping(ModelBackend(2, 64, mode=mode), compiler) as loop:
        whole = await collect(loop, constrained(1, 2, new=12))
        for done in (1, 4, 11):
            known = (1, 2, *(event.token_id for event in whole[:done]))
            resumed = replace(constrained(1, 2), input_ids=known, max_new_tokens=12 - done)
            assert without_times(await collect(loop, resumed)) == without_times(whole[done:])


async def test_a_resumed_text_that_breaks_the_grammar_is_refused() -> None:
    compiler = Compiler(lambda: Alternating([ODD]))
    compiler.go_on.set()
    async with looping(ModelBackend(2, 64), compiler) as loop:
        with pytest.raises(ValidationError, match="input_ids has 4 as generated token 1, which the grammar"):
            await collect(loop, replace(constrained(1, 2), input_ids=(1, 2, 3, 4)))
