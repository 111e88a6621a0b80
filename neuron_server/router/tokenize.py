"""``/tokenize`` and ``/chat_tokenize``: what a text, or a chat, is to the model. No permit, no validation."""

from __future__ import annotations

from itertools import islice

import orjson
from fastapi import FastAPI, Request, Response

from neuron_server.errors import ValidationError
from neuron_server.router.body import read
from neuron_server.router.handler import begin
from neuron_server.router.openai_schema import ChatRequest
from neuron_server.router.prompt import prepare_chat
from neuron_server.router.service import GenerationService
from neuron_server.router.tgi_schema import GenerateRequest
from neuron_server.text.tokenizer import LONG_TEXT_CHARS

#: Tokens written at once: that long the interpreter is not given back.
_AT_ONCE = 4096


def add_routes(app: FastAPI, service: GenerationService) -> None:
    """Add ``/tokenize`` to ``app``."""

    @app.post("/tokenize")
    async def tokenize(request: Request) -> Response:
        begin(request, "tokenize", tells_parameters=False)
        body = await read(request, GenerateRequest, service.config.payload_limit)
        service.require_open()
        tokens = await _tokens(service, body.inputs, add_special_tokens=True)
        return Response(tokens, media_type="application/json")


def add_open_routes(app: FastAPI, service: GenerationService) -> None:
    """Add ``/chat_tokenize`` to ``app``; TGI asks for no key here."""

    @app.post("/chat_tokenize")
    async def chat_tokenize(request: Request) -> Response:
        body = await read(request, ChatRequest, service.config.payload_limit)
        service.metrics.count.inc()  # as TGI counts it, though nothing is generated
        chat = await prepare_chat(service, body)
        tokens = await _tokens(service, chat.inputs, add_special_tokens=False)
        content = {"tokenize_response": orjson.Fragment(tokens), "templated_text": chat.inputs}
        return Response(orjson.dumps(content), media_type="application/json")


async def _tokens(service: GenerationService, text: str, *, add_special_tokens: bool) -> bytes:
    """The tokens of ``text`` as a JSON list; a long one is cut and written beside the event loop."""

    def work() -> bytes:
        try:
            tokens = service.tokenizer.tokenize(text, add_special_tokens=add_special_tokens)
        except Exception as error:  # an edge: tokenizers raise bare Exception, foreign ones anything
            raise ValidationError(f"tokenizer error {error}") from error
        written = []
        while some := [token._asdict() for token in islice(tokens, _AT_ONCE)]:
            written.append(orjson.dumps(some)[1:-1])
        return b"[" + b",".join(written) + b"]"

    return await service.in_thread(work) if len(text) > LONG_TEXT_CHARS else work()
