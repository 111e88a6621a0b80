"""The launcher's standard output: what it and its children say, without ever blocking it."""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from collections.abc import Callable

#: Kept for a reader that is slow; beyond it lines are dropped and counted.
_LIMIT_BYTES = 16 * 1024 * 1024


def text_notice(dropped: int) -> bytes:
    """The line that stands where lines were dropped."""
    return f"[{dropped} pieces of output dropped: nobody read them]\n".encode()


class Output:
    """A file descriptor that one thread writes to.

    A supervisor that hangs because nobody reads its log could neither stop nor restart anything, so a reader
    that stalls costs lines (and is told how many), and one that went away costs all of them. Has the
    ``write`` and ``flush`` of a text stream, as logging wants them. ``notice`` makes the line that says how
    many were dropped.
    """

    def __init__(
        self, fd: int, *, limit_bytes: int = _LIMIT_BYTES, notice: Callable[[int], bytes] = text_notice
    ) -> None:
        self._fd = fd
        self._notice = notice
        self._limit = limit_bytes
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self._dropped = 0
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="output", daemon=True)
        self._thread.start()

    def write(self, text: str) -> int:
        """Queue a text; returns its length, as a stream does."""
        self.write_bytes(text.encode(errors="replace"))
        return len(text)

    def write_bytes(self, data: bytes) -> None:
        """Queue bytes; never waits."""
        with self._changed:
            if self._queued + len(data) > self._limit:
                self._dropped += 1
                return
            if self._dropped:
                data = self._notice(self._dropped) + data
                self._dropped = 0
            self._queue.append(data)
            self._queued += len(data)
            self._changed.notify()

    def flush(self) -> None:
        """Nothing: the thread writes as fast as the reader reads."""

    def close(self, timeout_s: float = 2.0) -> None:
        """Write what is queued, as far as the reader takes it within ``timeout_s``."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while data := self._next():
            if not self._write_all(data):
                return self._discard()
        return None

    def _next(self) -> bytes:
        """The next piece; empty when closed and all is written."""
        with self._changed:
            while not self._queue and not self._closed:
                self._changed.wait()
            if not self._queue:
                return b""
            data = self._queue.popleft()
            self._queued -= len(data)
            return data

    def _write_all(self, data: bytes) -> bool:
        """False when nobody can read any more. No buffered file, as its lock could outlive this thread."""
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:
                select.select([], [self._fd], [])
            except OSError:
                return False
        return True

    def _discard(self) -> None:
        """The reader is gone: the service goes on without a log."""
        with self._changed:
            self._queue.clear()
            self._queued = 0
            self._limit = -1
