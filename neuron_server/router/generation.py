"""One generation: a permit, a valid request, and its events as pieces of text."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, replace
from typing import Protocol

from neuron_server.errors import IncompleteGenerationError, NeuronTgiError
from neuron_server.event import FinishReason, TokenEvent, TokenSource
from neuron_server.router.answer import Ending, Piece, Timings, Token
from neuron_server.router.handler import UNTRACED, Handler
from neuron_server.router.metrics import Metrics
from neuron_server.router.tgi_schema import GenerateParameters
from neuron_server.router.validation import ValidRequest
from neuron_server.text.tokenizer import Tokenizer
from neuron_server.text.transcript import Transcript
from neuron_server.tracing import NO_SPAN, Span


@dataclass(frozen=True, slots=True)
class Call:
    """What a route asks for. ``started_s`` is ``time.monotonic()`` when its ``handler`` began.

    ``begun``: the request has generated before, so that a drain lets it go on (within ``service.turn``).
    """

    inputs: str
    parameters: GenerateParameters
    started_s: float
    add_special_tokens: bool = True
    handler: Handler = UNTRACED
    begun: bool = False


class Host(Protocol):
    """What a generation needs of the service it runs in."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def source(self) -> TokenSource: ...

    @property
    def metrics(self) -> Metrics: ...

    def take_permit(self) -> None: ...

    def return_permit(self) -> None: ...

    async def validate(self, call: Call) -> ValidRequest: ...

    def failed(self, error: NeuronTgiError, call: Call) -> None: ...

    def dropped(self) -> None: ...


class Generation:
    """Use: ``admit``, then iterate ``pieces``, and ``close`` in any case.

    ``admit`` raises ``OverloadedError`` or ``ValidationError``; ``pieces`` ``GenerationError`` and below.
    ``close`` frees the slot and returns the permit, at once and whatever state the generation is in. Its span
    is below ``within``, or else below the handler's.
    """

    def __init__(
        self,
        host: Host,
        call: Call,
        *,
        on_end: Callable[[Ending], None] | None = None,
        within: Span | None = None,
    ) -> None:
        self._host = host
        self._call = call
        self._on_end = on_end
        self._within = within or call.handler.span
        self._span = NO_SPAN
        self._valid: ValidRequest | None = None
        self._pieces: AsyncGenerator[Piece, None] | None = None
        self._permit = False
        self._settled = False

    async def admit(self) -> None:
        """Take a permit, then validate: an overloaded server says so even to an invalid request."""
        self._span = self._within.child("generate_stream")
        try:
            self._host.take_permit()
            self._permit = True
            with self._span.child("validate", _asked(self._call)):
                valid = await self._host.validate(self._call)
            self._valid = _traced(valid, self._span)
        except NeuronTgiError as error:
            self._fail(error)
            raise

    @property
    def pieces(self) -> AsyncGenerator[Piece, None]:
        """One piece per token, text already cut at a stop string; the last has an ``ending``."""
        if self._pieces is None:
            assert self._valid is not None, "admit comes first"
            self._pieces = self._run(self._valid)
        return self._pieces

    async def close(self) -> None:
        """Idempotent. A generation that had begun and neither ended nor failed counts as dropped."""
        try:
            if self._pieces is not None:
                await self._pieces.aclose()
        finally:
            if self._permit:
                self._permit = False
                self._host.return_permit()
                if self._pieces is not None and not self._settled:
                    self._span.event("dropped")
                    self._host.dropped()
            self._span.end()

    async def abandon(self) -> None:
        """``close`` for a caller that has read all it wanted: neither a success nor dropped by its client."""
        if not self._settled:
            self._settled = True
            self._span.event("abandoned")
        await self.close()

    def _fail(self, error: NeuronTgiError) -> None:
        self._settled = True
        self._span.fail(error)
        self._host.failed(error, self._call)

    async def _run(self, valid: ValidRequest) -> AsyncGenerator[Piece, None]:
        tokenizer, metrics = self._host.tokenizer, self._host.metrics
        transcript = Transcript(tokenizer, valid.request.input_ids, valid.stops)
        queued_s = previous_s = time.monotonic()
        queue_s, count, last = 0.0, 0, None
        try:
            async with contextlib.aclosing(self._host.source.stream(valid.request)) as events:
                async for event in events:
                    count += 1
                    now_s = time.monotonic()
                    prefill: tuple[Token, ...] = ()
                    if count == 1:
                        queue_s = event.queue_s or 0.0
                        prefill = _prefill(tokenizer, valid, event)
                        metrics.first_token(now_s - self._call.started_s)
                        self._span.event("first_token")
                    else:
                        metrics.next_token(now_s - previous_s)
                    previous_s = now_s
                    text, special, stopped = transcript.push(event.token_id, last=event.finish is not None)
                    token = Token(event.token_id, text, event.logprob, special)
                    top_tokens = _top_tokens(tokenizer, event) if event.top_tokens else ()
                    if stopped or event.finish is not None:
                        last = Piece(token, top_tokens, prefill)
                        reason = _finish_reason(event.finish, stopped)
                        break
                    yield Piece(token, top_tokens, prefill)
            # Behind the block: the slot is free again before the last piece goes out.
            if last is None:
                raise IncompleteGenerationError("the events ended without a finish reason")
        except NeuronTgiError as error:
            self._fail(error)
            raise
        timings = self._timings(queued_s, queue_s)
        text = transcript.generated_text
        ending = Ending(text, reason, count, valid.seed, valid.input_length, timings)
        self._settled = True
        self._tell(ending, queued_s)
        if self._on_end is not None:
            self._on_end(ending)
        yield last._replace(ending=ending)

    def _timings(self, queued_s: float, queue_s: float) -> Timings:
        now = time.monotonic()
        started_s = self._call.started_s
        inference_s = max(now - queued_s - queue_s, 0.0)
        return Timings(now - started_s, queued_s - started_s, queue_s, inference_s)

    def _tell(self, ending: Ending, queued_s: float) -> None:
        """What is known only at the end: TGI's spans for waiting and working, and what came out."""
        began_s = queued_s + ending.timings.queue_s
        self._span.child("queued", started_s=queued_s).end(began_s)
        self._span.child("infer", started_s=began_s).end(began_s + ending.timings.inference_s)
        self._span.set(
            {
                "input_length": ending.input_length,
                "generated_tokens": ending.generated_tokens,
                "finish_reason": ending.finish_reason.value,
            }
        )


def _asked(call: Call) -> dict[str, int]:
    """What TGI's span of the validation names, where it was given."""
    limits = {"truncate": call.parameters.truncate, "max_new_tokens": call.parameters.max_new_tokens}
    given = {name: limit for name, limit in limits.items() if limit is not None}
    return {"add_special_tokens": call.add_special_tokens, **given}


def _traced(valid: ValidRequest, span: Span) -> ValidRequest:
    """The request as work of ``span``."""
    if span.traceparent is None:
        return valid
    return replace(valid, request=replace(valid.request, traceparent=span.traceparent))


def _finish_reason(finish: FinishReason | None, stopped: bool) -> FinishReason:
    """An EOS token is told as such; a stop string that completes in the last possible token is a stop."""
    if finish is FinishReason.EOS_TOKEN or not stopped:
        assert finish is not None
        return finish
    return FinishReason.STOP_SEQUENCE


def _top_tokens(tokenizer: Tokenizer, event: TokenEvent) -> tuple[Token, ...]:
    """The likeliest tokens, each with its text by itself."""
    return tuple(
        Token(
            top.token_id,
            tokenizer.token_text(top.token_id),
            top.logprob,
            top.token_id in tokenizer.special_ids,
        )
        for top in event.top_tokens
    )


def _prefill(tokenizer: Tokenizer, valid: ValidRequest, event: TokenEvent) -> tuple[Token, ...]:
    """The scored prompt; empty when nobody asked or the backend does not score."""
    if event.prompt_logprobs is None:
        return ()
    ids = valid.request.input_ids
    return tuple(
        Token(i, tokenizer.token_text(i), logprob)
        for i, logprob in zip(ids, event.prompt_logprobs, strict=False)
    )
