"""``/v1/chat/completions``: an answer in words or a tool call, whole or as a stream."""

from __future__ import annotations

import time

from fastapi import FastAPI, Request, Response

from neuron_server.router.answer import Answer
from neuron_server.router.body import read
from neuron_server.router.chat_chunk import Chunks, logprob
from neuron_server.router.chat_stream import ChatStream
from neuron_server.router.disconnect import WhileConnected
from neuron_server.router.generation import Call
from neuron_server.router.handler import Handler, begin
from neuron_server.router.headers import one_shot_headers
from neuron_server.router.json_reply import Json, dump
from neuron_server.router.on_device import check_chat
from neuron_server.router.openai_reply import finish_reason, head, usage
from neuron_server.router.openai_schema import ChatRequest
from neuron_server.router.prompt import prepare_chat
from neuron_server.router.service import GenerationService
from neuron_server.router.sse import OPENAI, stream
from neuron_server.router.tools import FunctionCall, ToolPlan, next_call_id, parse_call

#: The one call of a whole answer has this id, whatever calls came before it.
_CALL_ID = "0"


def add_routes(app: FastAPI, service: GenerationService) -> None:
    """Add the route to ``app``; it generates."""

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        body = await read(request, ChatRequest, service.config.payload_limit)
        return await chat(service, request, body)


async def chat(service: GenerationService, request: Request, body: ChatRequest) -> Response:
    """The response to ``body``, in the form it asks for; raises what refuses it."""
    started_s = time.monotonic()
    turn = _Turn(service, body, begin(request, "chat_completions"), started_s)
    service.metrics.count.inc()  # TGI counts a chat here and each of its generations once more
    if body.stream:
        return await turn.stream(request)
    async with WhileConnected(request.receive):
        with service.turn():
            return await turn.answer()


class _Turn:
    """One request while it is answered."""

    def __init__(
        self, service: GenerationService, body: ChatRequest, handler: Handler, started_s: float
    ) -> None:
        self._service = service
        self._body = body
        self._handler = handler
        self._started_s = started_s
        self._model = service.config.model_id if body.model in (None, "tgi") else body.model

    async def _prepare(self, in_words: bool) -> tuple[Call, ToolPlan | None]:
        """What to generate and, unless it is ``in_words``, with which tools.

        An answer in words that another generation came before has times of its own.
        """
        body, started_s = self._body, self._started_s
        if in_words:
            body, started_s = body.model_copy(update={"tools": None}), time.monotonic()
        with self._handler.span.child("apply_chat_template"):
            chat = await prepare_chat(self._service, body, begun=in_words)
        with self._service.refusing():
            check_chat(body, chat.tools, self._service.generators.info)
        call = Call(
            chat.inputs,
            chat.parameters,
            started_s,
            add_special_tokens=False,
            handler=self._handler,
            begun=in_words,
        )
        return call, chat.tools

    async def answer(self) -> Response:
        """The whole answer."""
        call, tools = await self._prepare(False)
        (answer,) = await self._service.generate(call)
        function = None
        if tools is not None:
            function = parse_call(answer.ending.generated_text)
            if tools.declined(function.name):
                function = None
                call, _ = await self._prepare(True)
                (answer,) = await self._service.generate(call)
        headers = one_shot_headers(len(call.inputs), answer.ending)
        return Response(dump(self._content(answer, function)), headers=headers, media_type="application/json")

    async def stream(self, request: Request) -> Response:
        """The answer in chunks."""
        chunks = Chunks(
            model=self._model,
            call_id=next_call_id(self._body.messages),
            logprobs=bool(self._body.logprobs),
        )
        include_usage = self._body.stream_options.include_usage
        found = ChatStream(self._service, chunks, self._prepare, include_usage=include_usage)
        return await stream(request, found.frames(), headers=found.headers, dialect=OPENAI)

    def _content(self, answer: Answer, function: FunctionCall | None) -> Json:
        ending = answer.ending
        choice = {
            "index": 0,
            "message": _message(ending.generated_text, function),
            "logprobs": _logprobs(answer) if self._body.logprobs else None,
            "finish_reason": finish_reason(ending.finish_reason),
        }
        return {
            **head("chat.completion", self._model),
            "choices": [choice],
            "usage": usage([ending]),
        }


def _message(text: str, function: FunctionCall | None) -> Json:
    if function is None:
        return {"role": "assistant", "content": text}
    called = {"description": None, "name": function.name, "arguments": function.arguments}
    return {"role": "assistant", "tool_calls": [{"id": _CALL_ID, "type": "function", "function": called}]}


def _logprobs(answer: Answer) -> Json:
    top_tokens = answer.top_tokens or [()] * len(answer.tokens)
    return {"content": [logprob(*pair) for pair in zip(answer.tokens, top_tokens, strict=True)]}
