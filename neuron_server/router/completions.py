"""``/v1/completions``: OpenAI's text completions of one or several prompts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

from fastapi import FastAPI, Request, Response

from neuron_server.config import RouterConfig
from neuron_server.router.answer import Piece
from neuron_server.router.body import read
from neuron_server.router.disconnect import WhileConnected
from neuron_server.router.errors import ErrorReply
from neuron_server.router.generation import Call, Generation
from neuron_server.router.handler import begin
from neuron_server.router.headers import compute_headers, time_headers
from neuron_server.router.interleave import interleave
from neuron_server.router.json_reply import Json, dump
from neuron_server.router.openai_parameters import completion_parameters
from neuron_server.router.openai_reply import finish_reason, head, usage
from neuron_server.router.openai_schema import CompletionRequest
from neuron_server.router.service import GenerationService
from neuron_server.router.sse import OPENAI, Frames, error_frame, frame, stream

_OBJECT = "text_completion"


def add_routes(app: FastAPI, service: GenerationService) -> None:
    """Add the route to ``app``."""

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        body = await read(request, CompletionRequest, service.config.payload_limit)
        return await complete(service, request, body)


async def complete(service: GenerationService, request: Request, body: CompletionRequest) -> Response:
    """The answer of the route, and of a platform that takes its body.

    Each prompt is a generation with its own permit. TGI asks for the log-probabilities of the prompt when
    it does not stream and shows them nowhere; here nobody computes them.
    """
    started_s = time.monotonic()
    handler = begin(request, "completions", tells_parameters=False)
    service.metrics.count.inc()  # as TGI: the request, besides each of its generations
    refusal = _refusal(body, service.config)
    if refusal is not None:
        service.metrics.failure.labels("validation").inc()
        return refusal.response()
    parameters = completion_parameters(body)
    calls = [Call(prompt, parameters, started_s, handler=handler) for prompt in body.prompt]
    headers = compute_headers(sum(len(prompt) for prompt in body.prompt))
    if not body.stream:
        return await _one_shot(service, request, calls, headers)
    common = head(_OBJECT, service.config.model_id)
    streams = [_frames(service.stream(call), index, common) for index, call in enumerate(calls)]
    frames = interleave(streams, partial(error_frame, dialect=OPENAI))
    return await stream(request, frames, headers=headers, dialect=OPENAI)


def _refusal(body: CompletionRequest, config: RouterConfig) -> ErrorReply | None:
    """What only this route checks, in the words that only this route has."""
    if body.suffix is not None:
        text = "Suffix is not supported and can be achieved by preprocessing the prompt."
        return ErrorReply(422, text, "suffix not supported")
    limit = config.max_client_batch_size
    if len(body.prompt) > limit:
        text = f"Number of prompts exceeds the maximum allowed batch size of {limit}"
        return ErrorReply(422, text, "batch size exceeded")
    return None


# -- one answer ----------------------------------------------------------------------------------------------


async def _one_shot(
    service: GenerationService, request: Request, calls: Sequence[Call], headers: dict[str, str]
) -> Response:
    async with WhileConnected(request.receive):
        finished = await service.generate_all(calls)
    endings = [answer.ending for _, answer in finished]
    content = {
        **head(_OBJECT, service.config.model_id),
        "choices": [
            _choice(index, answer.ending.generated_text, finish_reason(answer.ending.finish_reason))
            for index, answer in finished
        ],
        "usage": usage(endings),
    }
    headers.update(time_headers(endings))
    return Response(dump(content), headers=headers, media_type="application/json")


# -- a stream ------------------------------------------------------------------------------------------------


async def _frames(generation: Generation, index: int, common: Json) -> Frames:
    """One prompt's events. It is admitted, or refused, when the first of them is asked for."""
    try:
        await generation.admit()
        async for piece in generation.pieces:
            yield frame(_chunk(piece, index, common))
    finally:
        await generation.close()


def _chunk(piece: Piece, index: int, common: Json) -> bytes:
    """One event; the last one has the usage and TGI's own word for why it is the last."""
    ending = piece.ending
    if ending is None:
        return dump({**common, "choices": [_choice(index, piece.token.text, "")]})
    choice = _choice(index, piece.token.text, ending.finish_reason.value)
    return dump({**common, "choices": [choice], "usage": usage([ending])})


def _choice(index: int, text: str, reason: str) -> Json:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": reason}
