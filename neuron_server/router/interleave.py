"""Several streams of frames as one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from neuron_server.router.sse import Frames


def interleave(streams: Sequence[Frames], error_frame: Callable[[Exception], bytes]) -> Frames:
    """All of ``streams`` at once, in the order in which their frames come.

    A stream that fails ends with its ``error_frame`` and the others go on. If all of them fail before any has
    given a frame, the first one's error is raised: then there is no answer yet that it would be a part of.
    One stream is returned as it is. Closing the result closes them all.
    """
    return streams[0] if len(streams) == 1 else _Interleaved(streams, error_frame).frames()


class _Interleaved:
    """One task reads each stream; frames that arrive together, as a decode step's do, leave together."""

    def __init__(self, streams: Sequence[Frames], error_frame: Callable[[Exception], bytes]) -> None:
        self._streams = streams
        self._error_frame = error_frame
        self._ready: list[bytes] = []
        self._errors: dict[int, Exception] = {}  # those not told yet, by stream
        self._running = len(streams)
        self._begun = False
        self._news = asyncio.Event()

    async def frames(self) -> Frames:
        readers = [asyncio.create_task(self._read(n, stream)) for n, stream in enumerate(self._streams)]
        try:
            over = False
            while not over:
                await self._news.wait()
                self._news.clear()
                over = not self._running  # else news of what happens during the yield is set again
                self._begun = self._begun or bool(self._ready)
                if self._begun and (frames := self._take()):
                    yield frames
            if self._errors:
                raise self._errors[min(self._errors)]
        finally:
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)

    def _take(self) -> bytes:
        told = [self._error_frame(error) for _, error in sorted(self._errors.items())]
        frames = b"".join([*self._ready, *told])
        self._ready.clear()
        self._errors.clear()
        return frames

    async def _read(self, number: int, stream: Frames) -> None:
        try:
            async for item in stream:
                self._ready.append(item)
                self._news.set()
        except Exception as error:  # noqa: BLE001 - an edge: told as an event, or raised if there is no answer
            self._errors[number] = error
        finally:
            await stream.aclose()
            self._running -= 1
            self._news.set()
