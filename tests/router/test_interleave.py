"""Several streams of frames as one, and several pieces of work at once."""

from __future__ import annotations

import asyncio

import pytest

from neuron_server.router.interleave import interleave
from neuron_server.router.together import together


class Stream:
    """Frames that a test gives; an exception among them is raised, ``None`` ends it."""

    def __init__(self, *items: bytes | Exception | None) -> None:
        self.items: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()
        self.closed = False
        for item in items:
            self.items.put_nowait(item)

    async def frames(self):
        try:
            while (item := await self.items.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            self.closed = True


def told(error: Exception) -> bytes:
    return f"<{error}>".encode()


async def all_of(*streams: Stream) -> list[bytes]:
    return [frames async for frames in interleave([stream.frames() for stream in streams], told)]


def test_one_stream_is_not_wrapped():
    frames = Stream().frames()
    assert interleave([frames], told) is frames


async def test_frames_that_are_there_together_are_one_piece_in_the_order_of_the_streams():
    assert await all_of(Stream(b"a", None), Stream(b"b", None), Stream(b"c", None)) == [b"abc"]


async def test_a_slow_stream_holds_nobody_up():
    slow, quick = Stream(), Stream(b"1", b"2", None)
    frames = interleave([slow.frames(), quick.frames()], told)
    assert await anext(frames) == b"12"
    slow.items.put_nowait(b"3")
    assert await anext(frames) == b"3"
    slow.items.put_nowait(None)
    with pytest.raises(StopAsyncIteration):
        await anext(frames)
    assert slow.closed


async def test_a_failure_is_told_behind_what_its_stream_gave_and_the_others_go_on():
    failing, other = Stream(b"a", ValueError("x")), Stream(b"b")
    frames = interleave([failing.frames(), other.frames()], told)
    assert await anext(frames) == b"ab<x>"
    other.items.put_nowait(b"c")
    assert await anext(frames) == b"c"
    await frames.aclose()


async def test_a_failure_before_any_frame_waits_for_one():
    failing, other = Stream(ValueError("x")), Stream()
    frames = interleave([failing.frames(), other.frames()], told)
    first = asyncio.ensure_future(anext(frames))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not first.done()
    other.items.put_nowait(b"a")
    assert await first == b"a<x>"
    await frames.aclose()


async def test_when_all_fail_without_a_frame_the_error_of_the_first_stream_is_raised():
    first, second = Stream(), Stream(ValueError("second"))
    frames = interleave([first.frames(), second.frames()], told)
    task = asyncio.ensure_future(anext(frames))
    for _ in range(5):
        await asyncio.sleep(0)
    first.items.put_nowait(KeyError("first"))
    with pytest.raises(KeyError):
        await task


async def test_what_happens_while_a_piece_is_sent_is_not_lost():
    one, two = Stream(b"a"), Stream(b"b")
    frames = interleave([one.frames(), two.frames()], told)
    assert await anext(frames) == b"ab"
    for stream, item in ((one, b"c"), (one, ValueError("x")), (two, ValueError("y"))):
        stream.items.put_nowait(item)
    for _ in range(10):  # both end before the next piece is asked for
        await asyncio.sleep(0)
    assert await anext(frames) == b"c<x><y>"
    with pytest.raises(StopAsyncIteration):
        await anext(frames)


async def test_streams_without_frames_end():
    assert await all_of(Stream(None), Stream(None)) == []


async def test_closing_closes_all():
    streams = [Stream(b"a"), Stream(), Stream(b"c")]
    frames = interleave([stream.frames() for stream in streams], told)
    await anext(frames)
    await frames.aclose()
    assert all(stream.closed for stream in streams)


# -- together ------------------------------------------------------------------------------------------------


async def returns(value: int, after: asyncio.Event | None = None, ended: list[int] | None = None) -> int:
    try:
        if after is not None:
            await after.wait()
        return value
    finally:
        if ended is not None:
            ended.append(value)


async def fails() -> int:
    raise ValueError("no")


async def test_results_stand_in_order():
    assert await together([returns(1), returns(2), returns(3)]) == [1, 2, 3]
    assert await together([returns(1)]) == [1]
    assert await together([]) == []


async def test_the_first_failure_stops_the_rest():
    never, ended = asyncio.Event(), []
    with pytest.raises(ValueError, match="no"):
        await together([returns(1, never, ended), fails(), returns(3, never, ended)])
    assert ended == [1, 3]


async def test_being_cancelled_stops_all():
    never, ended = asyncio.Event(), []
    task = asyncio.ensure_future(together([returns(1, never, ended), returns(2, never, ended)]))
    for _ in range(3):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [1, 2]
