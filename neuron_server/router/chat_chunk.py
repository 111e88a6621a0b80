"""The chunks of a streamed chat, written around what one token changes.

All but a few fields of a chunk are the same for the whole stream, so they are JSON already when it begins.
"""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from neuron_server.router.answer import Ending, Piece, Token
from neuron_server.router.json_reply import Json, dump, f32
from neuron_server.router.openai_reply import finish_reason, head, usage
from neuron_server.router.tool_stream import CallDelta


def logprob(token: Token, top_tokens: Sequence[Token]) -> Json:
    """One token of ``logprobs.content``."""
    return {
        "token": token.text,
        "logprob": f32(token.logprob),
        "top_logprobs": [{"token": top.text, "logprob": f32(top.logprob)} for top in top_tokens],
    }


class Chunks:
    """Makes the frames of one stream; ``logprobs`` says whether its chunks show them."""

    def __init__(self, *, model: str, call_id: str, logprobs: bool) -> None:
        self._head = b"data: " + dump(head("chat.completion.chunk", model))[:-1] + b',"choices":['
        delta = self._head + b'{"index":0,"delta":{"role":"assistant",'
        self._text = delta + b'"content":'
        self._call = delta + b'"tool_calls":[{"index":0,"id":' + orjson.dumps(call_id)
        self._call += b',"type":"function","function":{"name":'
        self._logprobs = logprobs

    def text(self, piece: Piece) -> bytes:
        """A token of the answer; what a special token looks like is nobody's business."""
        token = piece.token
        return self._text + (b'""' if token.special else orjson.dumps(token.text)) + self._tail(piece)

    def call(self, piece: Piece, delta: CallDelta) -> bytes:
        """A token of a tool call."""
        name, arguments = orjson.dumps(delta.name), orjson.dumps(delta.arguments)
        return self._call + name + b',"arguments":' + arguments + b"}}]" + self._tail(piece)

    def usage(self, ending: Ending) -> bytes:
        """The additional chunk of ``include_usage``."""
        return self._head + b'],"usage":' + dump(usage([ending])) + b"}\n\n"

    def _tail(self, piece: Piece) -> bytes:
        logprobs, reason = b"null", b"null"
        if self._logprobs:
            logprobs = dump({"content": [logprob(piece.token, piece.top_tokens)]})
        if piece.ending is not None:
            reason = orjson.dumps(finish_reason(piece.ending.finish_reason))
        return b'},"logprobs":' + logprobs + b',"finish_reason":' + reason + b'}],"usage":null}\n\n'
