"""Chats for tests: what a model would write turn by turn, the requests, and the events of a stream."""

from __future__ import annotations

import json

PATH = "/v1/chat/completions"
EOS = 0

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather at a place",
        "parameters": {
            "type": "object",
            "properties": {"location": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["location"],
        },
    },
}
NO_TOOL = '{"function": {"_name": "no_tool"}}'


def writes(one, tokenizer, *texts: str, end: tuple[int, ...] = (EOS,)):
    """The model of harness ``one`` writes these texts, one per generation; the last one is repeated."""
    source, plain = one.source, one.source.stream

    def stream(request):
        text = texts[min(len(source.requests), len(texts) - 1)]
        source.script = (*tokenizer.encode(text, add_special_tokens=False), *end)
        return plain(request)

    source.stream = stream
    return one


def chat(content: str = "Hi", **fields) -> dict:
    """A request body."""
    return {"messages": [{"role": "user", "content": content}], **fields}


async def ask(one, content: str = "Hi", **fields):
    """The answer to one chat."""
    return await one.client.post(PATH, json=chat(content, **fields))


def events(answer) -> list[dict]:
    """Data events before the one ``[DONE]``; the framing is checked byte for byte."""
    blocks = answer.content.split(b"\n\n")
    assert blocks.pop() == b""
    assert blocks.pop() == b"data: [DONE]"
    assert all(block.startswith(b"data: {") and b"\n" not in block for block in blocks)
    return [json.loads(block[6:]) for block in blocks]


def counted(one) -> list[str]:
    """The lines of ``/metrics``."""
    return one.service.metrics.render().decode().splitlines()
