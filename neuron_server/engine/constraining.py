"""Requests with a grammar on their way to the engine: compiled first, so that no step waits for it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from neuron_server.engine.loop_session import Ticket
from neuron_server.errors import GenerationError, NeuronTgiError, ValidationError
from neuron_server.grammar import Compile, Constraint, Grammar
from neuron_server.request import GenerationRequest

logger = logging.getLogger(__name__)

#: Gets the constraint, or why there is none.
Then = Callable[[Constraint | NeuronTgiError], None]


class Constraining:
    """One task per request that is being compiled; everything happens on the asyncio thread.

    Without ``compile`` every grammar is refused.
    """

    def __init__(self, compile: Compile | None) -> None:  # noqa: A002 - the word of the contract
        self._compile = compile
        self._tasks: dict[Ticket, asyncio.Task[None]] = {}

    def begin(self, ticket: Ticket, request: GenerationRequest, grammar: Grammar, then: Then) -> None:
        """Compile, and call ``then`` with what came out unless ``drop`` is called before."""
        self._tasks[ticket] = asyncio.create_task(self._run(ticket, request, grammar, then))

    def drop(self, tickets: Iterable[Ticket]) -> None:
        """Forget these requests, those that are not being compiled included."""
        for ticket in tickets:
            if (task := self._tasks.pop(ticket, None)) is not None:
                task.cancel()

    async def _run(self, ticket: Ticket, request: GenerationRequest, grammar: Grammar, then: Then) -> None:
        outcome: Constraint | NeuronTgiError
        try:
            outcome = await self._constraint(request, grammar)
        except NeuronTgiError as error:
            outcome = error
        except Exception:  # this task's edge: one request fails, not the loop
            logger.exception("compiling a grammar failed")
            outcome = GenerationError("the grammar could not be compiled")
        if self._tasks.pop(ticket, None) is not None:
            then(outcome)

    async def _constraint(self, request: GenerationRequest, grammar: Grammar) -> Constraint:
        if self._compile is None:
            raise ValidationError("grammar is not supported")
        constraint = await self._compile(grammar, request.stop_ids)
        if request.generated:
            await asyncio.to_thread(replay, constraint, request)
        return constraint


def replay(constraint: Constraint, request: GenerationRequest) -> None:
    """Bring a fresh constraint to where a resumed request stands.

    Raises ``ValidationError`` when what was generated does not follow the grammar.
    """
    for index, token in enumerate(request.input_ids[request.prompt_length :]):
        try:
            constraint.advance(token)
        except ValueError:
            raise ValidationError(
                f"input_ids has {token} as generated token {index}, which the grammar does not allow there"
            ) from None
