"""A chat as the text to continue, and the parameters to continue it with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from neuron_server.errors import NeuronTgiError, NoChatTemplateError
from neuron_server.router.openai_parameters import chat_parameters
from neuron_server.router.openai_schema import (
    ChatRequest,
    FunctionDefinition,
    Message,
    MessageChunk,
    TextChunk,
    Tool,
)
from neuron_server.router.service import GenerationService
from neuron_server.router.tgi_schema import GenerateParameters
from neuron_server.router.tools import ToolPlan, choose
from neuron_server.text.chat import ChatTemplate
from neuron_server.text.tokenizer import LONG_TEXT_CHARS

#: What a model is told behind the tools when the request does not say it.
TOOL_PROMPT = (
    "You can call the functions above. Choose the one that serves the last message best and answer with "
    "nothing but JSON: its name, and a value for each of its parameters. Write plain values, no variables "
    "and no placeholders."
)

#: Longer conversations are rendered in a thread, so that streams go on meanwhile.
_MANY_PIECES = 64

#: JSON that goes to the template (``Any``: a tool's parameters are any JSON).
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class PreparedChat:
    """``inputs`` holds all special tokens already; ``tools`` is ``None`` where none are active."""

    inputs: str
    parameters: GenerateParameters
    tools: ToolPlan | None


async def prepare_chat(
    service: GenerationService, request: ChatRequest, *, begun: bool = False
) -> PreparedChat:
    """What to generate for ``request``; ``begun`` as in ``Call``. Takes no permit, validates no parameter.

    Raises ``ToolError``, ``ChatTemplateError`` and, while the model loads, ``UnavailableError``; counted and
    logged already.
    """
    service.require_open(begun=begun)
    try:
        plan = choose(request)
        template = service.chat_template
        if template is None:
            raise NoChatTemplateError("template not found")
        if _is_long(request.messages):
            inputs = await service.in_thread(lambda: render(template, request, plan))
        else:
            inputs = render(template, request, plan)
    except NeuronTgiError as error:
        service.failed(error)
        raise
    return PreparedChat(inputs, chat_parameters(request, None if plan is None else plan.grammar), plan)


def render(template: ChatTemplate, request: ChatRequest, plan: ToolPlan | None) -> str:
    """The conversation with the tools that ``plan`` offers; raises ``ChatTemplateError``.

    They are shown by the template, or else behind the last message, which ends with the tool prompt in any
    case; a last message that is itself a call stays as it is.
    """
    messages = [{"role": message.role, "content": text_of(message)} for message in request.messages]
    if plan is None:
        return template.render(messages)
    tools = [_tool(tool) for tool in plan.tools]
    if messages and request.messages[-1].content is not None:
        shown = "" if template.uses_tools else f"{orjson.dumps(tools).decode()}\n"
        messages[-1]["content"] += f"\n---\n{shown}{request.tool_prompt or TOOL_PROMPT}"
    return template.render(messages, tools)


def text_of(message: Message) -> str:
    """A message as one text: images as markdown, calls as JSON."""
    content = message.content
    if content is None:
        calls = [
            {"id": call.id, "type": call.type, "function": _function(call.function)}
            for call in message.tool_calls or ()
        ]
        return orjson.dumps(calls).decode()
    if isinstance(content, str):
        return content
    return "".join(map(_text_of_chunk, content))


def _text_of_chunk(chunk: MessageChunk) -> str:
    return chunk.text if isinstance(chunk, TextChunk) else f"![]({chunk.image_url.url})"


def _tool(tool: Tool) -> Json:
    return {"type": tool.type, "function": _function(tool.function)}


def _function(function: FunctionDefinition) -> Json:
    """With the arguments as JSON in a string, also when they are a string already: TGI's form."""
    return {
        "description": function.description,
        "name": function.name,
        "arguments": orjson.dumps(function.arguments).decode(),
    }


def _is_long(messages: Sequence[Message]) -> bool:
    """Whether rendering them takes long enough to be noticed."""
    pieces: list[str | MessageChunk] = []
    for message in messages:
        content = message.content
        pieces += [content] if isinstance(content, str) else content or [""]
        if len(pieces) > _MANY_PIECES:
            return True
    return sum(len(p if isinstance(p, str) else _text_of_chunk(p)) for p in pieces) > LONG_TEXT_CHARS
