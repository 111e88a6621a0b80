"""Admission and text: who may generate now, and what comes back. Knows no HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from neuron_server.config import RouterConfig
from neuron_server.errors import NeuronTgiError, OverloadedError, UnavailableError
from neuron_server.router.answer import Answer, Ending, fold
from neuron_server.router.generation import Call, Generation
from neuron_server.router.metrics import Metrics
from neuron_server.router.on_device import check_parameters, samples_on_device
from neuron_server.router.replicas import Generators
from neuron_server.router.together import together
from neuron_server.router.validation import Validator, ValidRequest, check_best_of, check_stream_only
from neuron_server.session import Phase
from neuron_server.text.chat import ChatTemplate
from neuron_server.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

T = TypeVar("T")

READY = "ready"

#: So much of a prompt stands in a debug line.
_INPUT_CHARS = 1000


class GenerationService:
    """Permits, readiness and generations.

    It exists before the tokenizer and the generators do, so that ``/health`` can say what is going on;
    ``open`` makes it serve. One permit is one running or waiting generation: beyond
    ``max_concurrent_requests`` of them requests are refused, and there is no other bound on the queue.
    """

    def __init__(self, config: RouterConfig, generators: Generators, metrics: Metrics) -> None:
        self.config = config
        self.generators = generators
        self.metrics = metrics
        self._executor = ThreadPoolExecutor(config.validation_workers, thread_name_prefix="tokenize")
        self._tokenizer: Tokenizer | None = None
        #: The model's; ``None`` before ``open`` and for a model without one.
        self.chat_template: ChatTemplate | None = None
        self._validator: Validator | None = None
        self._draining = False
        self._permits = 0
        self._turns = 0
        self._idle = asyncio.Event()
        self._idle.set()

    # -- life ------------------------------------------------------------------------------------------------

    def open(self, tokenizer: Tokenizer, chat_template: ChatTemplate | None = None) -> None:
        """Begin to serve: the tokenizer is there, and a generator was ready."""
        self._tokenizer = tokenizer
        self.chat_template = chat_template
        self._validator = Validator(self.config, tokenizer, self._executor)

    def drain(self) -> None:
        """Refuse new generations from now on; those inside go on."""
        self._draining = True

    async def idle(self) -> None:
        """Until no generation is inside."""
        await self._idle.wait()

    def close(self) -> None:
        """Give the threads back."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    @property
    def phase(self) -> str:
        """``ready``, or why not: ``loading``, ``warming up``, ``failed``, ``restarting``, ``draining``."""
        if self._draining:
            return "draining"
        generators = self.generators.phase
        if self._tokenizer is None:
            return str((Phase.LOADING if generators is Phase.READY else generators).value)
        return READY if generators is Phase.READY else "restarting"

    @property
    def in_flight(self) -> int:
        """Generations that hold a permit."""
        return self._permits

    # -- generations -----------------------------------------------------------------------------------------

    def stream(self, call: Call) -> Generation:
        """A generation for a streaming route; raises what is refused before a permit is taken."""
        self.require_open(begun=call.begun)
        self.metrics.count.inc()
        self._began(call)
        with self.refusing(call):
            check_stream_only(call.parameters)
            self._check_device(call)
        return Generation(self, call, on_end=partial(self._succeeded, call))

    async def generate(self, call: Call) -> list[Answer]:
        """The answer; with best_of > 1 the best one first, then the others."""
        self.require_open(begun=call.begun)
        copies = max(call.parameters.best_of or 1, 1)
        check_best_of(copies, self.config.max_best_of)
        self.metrics.count.inc()
        self._began(call)
        with self.refusing(call):
            self._check_device(call)
        async with contextlib.AsyncExitStack() as stack:
            within = call.handler.span
            if copies > 1:
                within = stack.enter_context(within.child("generate_best_of", {"best_of": copies}))
            generations = [Generation(self, call, within=within) for _ in range(copies)]
            for generation in generations:
                stack.push_async_callback(generation.close)
                await generation.admit()
            answers = await together([fold(generation.pieces) for generation in generations])
        best = max(range(copies), key=lambda n: answers[n].mean_logprob)  # max keeps the first of equals
        self._succeeded(call, answers[best].ending)
        return [answers[best], *(answer for n, answer in enumerate(answers) if n != best)]

    async def generate_all(self, calls: Sequence[Call]) -> list[tuple[int, Answer]]:
        """The answer to each of ``calls`` with its position, in the order in which they were finished.

        All are admitted before any begins, and the first one that is refused or fails ends them all.
        """
        generations = [self.stream(call) for call in calls]
        finished: list[tuple[int, Answer]] = []

        async def finish(position: int, generation: Generation) -> None:
            finished.append((position, await fold(generation.pieces)))
            await generation.close()  # its permit is for others while the rest goes on

        async with contextlib.AsyncExitStack() as stack:
            for generation in generations:
                stack.push_async_callback(generation.close)
                await generation.admit()
            await together([finish(n, generation) for n, generation in enumerate(generations)])
        return finished

    async def in_thread(self, work: Callable[[], T]) -> T:
        """What ``work`` returns, done beside the event loop by one of the threads that tokenize."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Around a request that may generate more than once: a drain waits for it between them too."""
        self._turns += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._turns -= 1
            self._settle()

    @contextlib.contextmanager
    def refusing(self, call: Call | None = None) -> Iterator[None]:
        """Around checks that come before a permit: what they refuse is counted and logged here."""
        try:
            yield
        except NeuronTgiError as error:
            self.failed(error, call)
            raise

    def require_open(self, *, begun: bool = False) -> None:
        """Raises ``UnavailableError`` while there is nobody to serve, or nobody new; see ``Call.begun``.

        A restart is not refused: the request waits for the generator, its permit held."""
        phase = self.phase
        if self._draining and not begun:
            raise UnavailableError("The server is draining: it finishes what it has and accepts nothing new")
        if self._tokenizer is None:
            raise UnavailableError(f"The server is not ready yet: the model is {phase}")

    # -- what a generation needs (``generation.Host``) -------------------------------------------------------

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer; there once ``open`` was called."""
        assert self._tokenizer is not None
        return self._tokenizer

    @property
    def source(self) -> Generators:
        """Where events come from."""
        return self.generators

    def take_permit(self) -> None:
        """Raises ``OverloadedError``; never waits."""
        if self._permits >= self.config.max_concurrent_requests:
            raise OverloadedError("no permits available")
        self._permits += 1
        self._idle.clear()

    def return_permit(self) -> None:
        """The counterpart of ``take_permit``."""
        self._permits -= 1
        self._settle()

    async def validate(self, call: Call) -> ValidRequest:
        """A request in ids, or ``ValidationError``."""
        assert self._validator is not None
        valid = await self._validator.validate(
            call.inputs,
            call.parameters,
            add_special_tokens=call.add_special_tokens,
            seeded=not samples_on_device(self.generators.info),
            on_length=self.metrics.input_length.observe,
        )
        self.metrics.max_new_tokens.observe(valid.piece)
        return valid

    def failed(self, error: NeuronTgiError, call: Call | None = None) -> None:
        """Count and log a refusal or failure, and mark the span of its handler where there is a call yet."""
        self.metrics.failed(error)
        if call is None:
            logger.error("%s", error)
            return
        call.handler.span.fail(error)
        logger.error("%s", error, extra=call.handler.log_extra(call.parameters))

    def dropped(self) -> None:
        """Count a generation whose client went away."""
        self.metrics.failure.labels("dropped").inc()

    def _check_device(self, call: Call) -> None:
        approximate = self.config.approximate_top_p
        check_parameters(call.parameters, self.generators.info, approximate_top_p=approximate)

    def _settle(self) -> None:
        if not self._permits and not self._turns:
            self._idle.set()

    def _began(self, call: Call) -> None:
        call.handler.began(call.parameters)
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug(
                "Input: %s", call.inputs[:_INPUT_CHARS], extra=call.handler.log_extra(call.parameters)
            )

    def _succeeded(self, call: Call, ending: Ending) -> None:
        self.metrics.succeeded(ending)
        call.handler.succeeded(ending)
        if logger.isEnabledFor(logging.INFO):
            extra = call.handler.log_extra(call.parameters, ending)
            logger.debug("Output: %s", ending.generated_text, extra=extra)
            logger.info("Success", extra=extra)
