"""A streamed chat: one generation, or two when the model may call a tool and does not."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable

from neuron_server.router.chat_chunk import Chunks
from neuron_server.router.generation import Call, Generation
from neuron_server.router.headers import compute_headers
from neuron_server.router.service import GenerationService
from neuron_server.router.sse import Frames
from neuron_server.router.tool_stream import ToolStream
from neuron_server.router.tools import ToolPlan, unparsable

#: What to generate, and the tools it is for: all of the request's, or in words, which is without any.
Prepare = Callable[[bool], Awaitable[tuple[Call, ToolPlan | None]]]


class ChatStream:
    """Use: iterate ``frames``, once. It holds one generation at a time.

    With tools the first generation writes a call. Should that be to ``no_tool``, nothing of it is shown: it
    ends there, and a second one answers in words.
    """

    def __init__(
        self, service: GenerationService, chunks: Chunks, prepare: Prepare, *, include_usage: bool
    ) -> None:
        self._service = service
        self._chunks = chunks
        self._prepare = prepare
        self._include_usage = include_usage
        self._generation: Generation | None = None
        #: Those of the generation that is shown, so to be read when the first frame is there.
        self.headers: dict[str, str] = {}

    async def frames(self) -> Frames:
        """One frame per chunk. Raises what refuses a generation, and ``ToolError``, before the first of them.

        Whatever a generation holds is free again when this ends or is closed.
        """
        with self._service.turn():
            try:
                generation, tools = await self._begin(in_words=False)
                if tools is not None:
                    stream = ToolStream()
                    async with contextlib.aclosing(self._call(generation, tools, stream)) as frames:
                        async for frame in frames:
                            yield frame
                    if not tools.declined(stream.name):
                        return
                    await generation.abandon()
                    generation, _ = await self._begin(in_words=True)
                async for piece in generation.pieces:
                    yield self._chunks.text(piece)
                    if piece.ending is not None and self._include_usage:
                        yield self._chunks.usage(piece.ending)
            finally:
                if self._generation is not None:
                    await self._generation.close()

    async def _begin(self, *, in_words: bool) -> tuple[Generation, ToolPlan | None]:
        """The generation that is to be closed from now on, admitted."""
        call, tools = await self._prepare(in_words)
        self.headers.update(compute_headers(len(call.inputs)))
        generation = self._generation = self._service.stream(call)
        await generation.admit()
        return generation, tools

    async def _call(self, generation: Generation, tools: ToolPlan, stream: ToolStream) -> Frames:
        """The frames of a call; none when the model declines to make one."""
        async for piece in generation.pieces:
            try:
                delta = stream.feed("" if piece.token.special else piece.token.text)
            except ValueError as error:
                raise unparsable(piece.token.text, str(error)) from error
            if tools.declined(stream.name):
                return
            if delta is not None:
                yield self._chunks.call(piece, delta)
            if piece.ending is None:
                continue
            if stream.name is None:
                # TGI ends such a stream without a word, although it refuses the same answer in one piece.
                raise unparsable(piece.ending.generated_text, "there is no name of a function")
            if self._include_usage:
                yield self._chunks.usage(piece.ending)
