"""TGI's own routes: ``/generate``, ``/generate_stream`` and ``/``."""

from __future__ import annotations

import time
from collections.abc import Sequence

from fastapi import FastAPI, Request, Response

from neuron_server.router.answer import Answer, Ending, Piece, Token
from neuron_server.router.body import read
from neuron_server.router.disconnect import WhileConnected
from neuron_server.router.generation import Call, Generation
from neuron_server.router.handler import begin
from neuron_server.router.headers import compute_headers, one_shot_headers
from neuron_server.router.json_reply import Json, dump, f32
from neuron_server.router.service import GenerationService
from neuron_server.router.sse import Frames, frame, stream
from neuron_server.router.tgi_schema import CompatGenerateRequest, GenerateRequest


def add_routes(app: FastAPI, service: GenerationService) -> None:
    """Add the routes to ``app``; all of them generate."""

    @app.post("/generate")
    async def generate(request: Request) -> Response:
        started_s, handler = time.monotonic(), begin(request, "generate")
        body = await read(request, GenerateRequest, service.config.payload_limit)
        call = Call(body.inputs, body.parameters, started_s, handler=handler)
        return await _generate(service, request, call)

    @app.post("/generate_stream")
    async def generate_stream(request: Request) -> Response:
        started_s, handler = time.monotonic(), begin(request, "generate_stream")
        body = await read(request, GenerateRequest, service.config.payload_limit)
        call = Call(body.inputs, body.parameters, started_s, handler=handler)
        return await _stream(service, request, call)

    @app.post("/")
    async def compat_generate(request: Request) -> Response:
        body = await read(request, CompatGenerateRequest, service.config.payload_limit)
        return await compat(service, request, body)


async def compat(service: GenerationService, request: Request, body: CompatGenerateRequest) -> Response:
    """The answer of ``/``, and of a platform that takes its body: a list of one, or a stream."""
    started_s = time.monotonic()
    begin(request, "compat_generate", tells_parameters=False)
    handler = begin(request, "generate_stream" if body.stream else "generate")
    parameters = body.parameters
    if parameters.return_full_text is None:
        # TGI's default here for a text-generation model, and for one whose kind nobody knows
        full = service.config.pipeline_tag in (None, "text-generation")
        parameters = parameters.model_copy(update={"return_full_text": full})
    call = Call(body.inputs, parameters, started_s, handler=handler)
    if body.stream:
        return await _stream(service, request, call)
    return await _generate(service, request, call, as_list=True)


async def _generate(
    service: GenerationService, request: Request, call: Call, *, as_list: bool = False
) -> Response:
    async with WhileConnected(request.receive):
        answers = await service.generate(call)
    content = _answer(call, answers)
    headers = one_shot_headers(len(call.inputs), answers[0].ending)
    return Response(dump([content] if as_list else content), headers=headers, media_type="application/json")


async def _stream(service: GenerationService, request: Request, call: Call) -> Response:
    generation = service.stream(call)
    return await stream(
        request,
        _frames(generation, call),
        admit=generation.admit,
        close=generation.close,
        headers=compute_headers(len(call.inputs)),
    )


async def _frames(generation: Generation, call: Call) -> Frames:
    index = 0
    async for piece in generation.pieces:
        index += 1
        yield frame(_event(index, piece, call))


# -- JSON, key by key ----------------------------------------------------------------------------------------


def _token(token: Token) -> Json:
    return {"id": token.id, "text": token.text, "logprob": f32(token.logprob), "special": token.special}


def _tokens(tokens: Sequence[Token]) -> list[Json]:
    return [_token(token) for token in tokens]


def _event(index: int, piece: Piece, call: Call) -> bytes:
    """One stream event."""
    event: Json = {"index": index, "token": _token(piece.token)}
    if piece.top_tokens:
        event["top_tokens"] = _tokens(piece.top_tokens)
    ending = piece.ending
    event["generated_text"] = None if ending is None else _full_text(call, ending)
    event["details"] = None
    if ending is not None and call.parameters.details:
        event["details"] = {
            "finish_reason": ending.finish_reason.value,
            "generated_tokens": ending.generated_tokens,
            "seed": ending.seed,
            "input_length": ending.input_length,
        }
    return dump(event)


def _answer(call: Call, answers: Sequence[Answer]) -> Json:
    """The body of a one-shot answer; the best first."""
    best, *others = answers
    content: Json = {"generated_text": _full_text(call, best.ending)}
    if call.parameters.details or call.parameters.decoder_input_details:
        details = content["details"] = _sequence(best)
        if others:
            details["best_of_sequences"] = [
                {
                    "generated_text": _full_text(call, other.ending),
                    **_sequence(other),
                    **_top_tokens(call, other),
                }
                for other in others
            ]
        details.update(_top_tokens(call, best))
    return content


def _sequence(answer: Answer) -> Json:
    ending = answer.ending
    return {
        "finish_reason": ending.finish_reason.value,
        "generated_tokens": ending.generated_tokens,
        "seed": ending.seed,
        "prefill": [{k: v for k, v in _token(t).items() if k != "special"} for t in answer.prefill],
        "tokens": _tokens(answer.tokens),
    }


def _top_tokens(call: Call, answer: Answer) -> Json:
    """Present when asked for: one list per token, empty lists from a backend that has none."""
    if not call.parameters.top_n_tokens:
        return {}
    lists = answer.top_tokens or [()] * len(answer.tokens)
    return {"top_tokens": [_tokens(tokens) for tokens in lists]}


def _full_text(call: Call, ending: Ending) -> str:
    return call.inputs + ending.generated_text if call.parameters.return_full_text else ending.generated_text
