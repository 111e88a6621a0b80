"""A server process to measure, and streaming HTTP clients that cost as little as clients can.

The clients speak HTTP over bare asyncio streams and count ``data:`` lines: on a machine of two cores a
comfortable client library would measure itself.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

LAUNCHER = Path(sys.executable).with_name("text-generation-launcher")


class Server:
    """The launcher with ``flags``, ready when the ``with`` block begins and gone when it ends."""

    def __init__(self, *flags: str) -> None:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = int(s.getsockname()[1])
        self._argv = [str(LAUNCHER), "--hostname", "127.0.0.1", "--port", str(self.port), *flags]

    def __enter__(self) -> Server:
        self._process = subprocess.Popen(
            self._argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert self._process.stdout is not None
        lines = []
        for line in self._process.stdout:
            lines.append(line)
            if re.search(r"Ready: ", line):
                break
        else:
            raise RuntimeError("the server did not start:\n" + "".join(lines))
        # the pipe must be read on, or a full buffer would stop the launcher
        self._drain = subprocess.Popen(["cat"], stdin=self._process.stdout, stdout=subprocess.DEVNULL)
        return self

    @property
    def generators(self) -> list[int]:
        """Process ids of the generators that run, oldest first."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                parent = int(stat.read_text().rpartition(")")[2].split()[1])
                argv = (stat.parent / "cmdline").read_bytes()
            except OSError:  # it ended meanwhile
                continue
            if parent == self._process.pid and b"serve_generator" in argv:
                found.append(int(stat.parent.name))
        return sorted(found)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(60)
        self._drain.wait(60)


@dataclass
class StreamTimes:
    """When (``time.perf_counter``) one streamed request was sent, and when each of its tokens arrived."""

    sent: float
    tokens: list[float] = field(default_factory=list)


async def stream(port: int, body: dict[str, object]) -> StreamTimes:
    """POST ``body`` to /generate_stream and note the arrival of every event; raises unless it is a 200."""
    payload = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = "POST /generate_stream HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
    times = StreamTimes(sent=time.perf_counter())
    writer.write(f"{head}Connection: close\r\nContent-Length: {len(payload)}\r\n\r\n".encode() + payload)
    status = await reader.readline()
    if b" 200 " not in status:
        raise RuntimeError(f"{status!r} {await reader.read()!r}")
    while line := await reader.readline():
        if line.startswith(b'data: {"index"'):
            times.tokens.append(time.perf_counter())
        elif line.startswith(b"data: "):
            raise RuntimeError(line.decode())
    writer.close()
    return times


async def streams(port: int, bodies: list[dict[str, object]]) -> list[StreamTimes]:
    """All bodies at once, one connection each."""
    return list(await asyncio.gather(*(stream(port, body) for body in bodies)))
