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
from neuron_server.router.tools import NO_TOOL, ToolPlan, unparsable


class ChatStream:
    """Use: iterate ``frames``, once. It holds one generation at a time.

    With ``tools`` the first generation writes a call. Should that be to ``no_tool``, nothing of it is shown:
    it ends there, and what ``in_words`` asks for is generated instead.
    """

    def __init__(
        self,
        service: GenerationService,
        call: Call,
        chunks: Chunks,
        *,
        include_usage: bool,
        tools: ToolPlan | None,
        in_words: Callable[[], Awaitable[Call]],
    ) -> None:
        self._service = service
        self._chunks = chunks
        self._include_usage = include_usage
        self._tools = tools
        self._in_words = in_words
        self._generation: Generation = service.stream(call)
        #: Those of the generation that is shown, so to be read when the first frame is there.
        self.headers = compute_headers(len(call.inputs))

    async def frames(self) -> Frames:
        """One frame per chunk. Raises what refuses a generation, and ``ToolError``, before the first of them.

        Whatever a generation holds is free again when this ends or is closed.
        """
        try:
            await self._generation.admit()
            if self._tools is not None:
                stream = ToolStream()
                async with contextlib.aclosing(self._call_frames(self._tools, stream)) as frames:
                    async for frame in frames:
                        yield frame
                if not _declined(self._tools, stream):
                    return
                await self._begin_again()
            async for piece in self._generation.pieces:
                yield self._chunks.text(piece)
                if piece.ending is not None and self._include_usage:
                    yield self._chunks.usage(piece.ending)
        finally:
            await self._generation.close()

    async def _call_frames(self, tools: ToolPlan, stream: ToolStream) -> Frames:
        """The frames of a call; none when the model declines to make one."""
        async for piece in self._generation.pieces:
            try:
                delta = stream.feed("" if piece.token.special else piece.token.text)
            except ValueError as error:
                raise unparsable(piece.token.text, str(error)) from error
            if _declined(tools, stream):
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

    async def _begin_again(self) -> None:
        """Free the first generation, then start the second."""
        await self._generation.abandon()
        call = await self._in_words()
        self.headers.update(compute_headers(len(call.inputs)))
        self._generation = self._service.stream(call)
        await self._generation.admit()


def _declined(tools: ToolPlan, stream: ToolStream) -> bool:
    return tools.optional and stream.name == NO_TOOL
