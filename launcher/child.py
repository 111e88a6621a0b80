"""One program that the launcher runs: its process group, its output and its last words."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from launcher.log_lines import readable

Forward = Callable[[str, bytes], None]
"""Takes the child's name and a line, its newline included."""

#: A longer line is passed on in pieces.
_LINE_BYTES = 1024 * 1024
_LAST_LINES = 20
_LAST_LINE_CHARACTERS = 500
#: How long the output of a dead process may stay open in the hands of its own children.
_DRAIN_S = 1.0


class Child(asyncio.SubprocessProtocol):
    """A started process, the leader of its own session: a terminal's Ctrl-C reaches only the launcher.

    ``ended`` is done once the process is gone, nothing of its group is left and its output was forwarded; its
    result is the exit status, negative for a signal.

    A protocol, because asyncio's own ``Process.wait`` also waits for whoever else holds the output open.
    """

    def __init__(self, name: str, forward: Forward) -> None:
        self.name = name
        self.pid = 0
        self._forward = forward
        self._rest = b""
        self._last_lines: deque[str] = deque(maxlen=_LAST_LINES)
        self._transport: asyncio.SubprocessTransport | None = None
        self._exited = asyncio.Event()
        self._silent = asyncio.Event()
        self.ended = asyncio.create_task(self._run(), name=f"{name} ended")

    @classmethod
    async def start(cls, name: str, argv: Sequence[str], env: Mapping[str, str], forward: Forward) -> Child:
        """Start ``argv``; its stdout and stderr are one stream, in the order they were written."""
        child = cls(name, forward)
        try:
            await asyncio.get_running_loop().subprocess_exec(
                lambda: child,
                *argv,
                env=env,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError:
            child.ended.cancel()
            raise
        return child

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return not self.ended.done()

    @property
    def last_words(self) -> str:
        """The last lines it wrote, indented; empty when it wrote none."""
        return "\n".join("    " + line for line in self._last_lines)

    def how_it_ended(self) -> str:
        """``exited with status 3`` or ``was killed by signal 9 (SIGKILL)``; only once ``ended`` is done."""
        status = self.ended.result()
        if status >= 0:
            return f"exited with status {status}"
        with contextlib.suppress(ValueError):
            name = signal.Signals(-status).name
            hint = ", as the kernel does when memory runs out" if name == "SIGKILL" else ""
            return f"was killed by signal {-status} ({name}){hint}"
        return f"was killed by signal {-status}"

    def terminate(self) -> None:
        """Ask the process to stop. Its own children are its own business until ``kill``."""
        if self._transport is not None:
            with contextlib.suppress(ProcessLookupError):
                self._transport.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the whole group at once."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    # -- asyncio calls these ---------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The process runs."""
        if isinstance(transport, asyncio.SubprocessTransport):
            self._transport = transport
            self.pid = transport.get_pid()

    def pipe_data_received(self, fd: int, data: bytes) -> None:  # noqa: ARG002
        """Some output."""
        *lines, rest = data.split(b"\n")
        if lines:
            lines[0] = self._rest + lines[0]
            self._rest = b""
        for line in lines:
            self._say(line + b"\n")
        self._rest += rest
        if len(self._rest) >= _LINE_BYTES:
            self._say(self._rest)
            self._rest = b""

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:  # noqa: ARG002
        """The end of the output."""
        if self._rest:
            self._say(self._rest + b"\n")
            self._rest = b""
        self._silent.set()

    def process_exited(self) -> None:
        """The process is gone; its output may not be."""
        self._exited.set()

    async def _run(self) -> int:
        await self._exited.wait()
        self.kill()  # what it left behind would hold the device, the socket or the port
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._silent.wait(), _DRAIN_S)
        if self._transport is None:
            raise RuntimeError("a process ended that never started")
        status = self._transport.get_returncode()
        self._transport.close()
        if status is None:
            raise RuntimeError("a process ended without a status")
        return status

    def _say(self, line: bytes) -> None:
        self._last_lines += (text[:_LAST_LINE_CHARACTERS] for text in readable(line).splitlines() if text)
        self._forward(self.name, line)


async def ended_before(child: Child, event: asyncio.Event, timeout_s: float | None = None) -> bool:
    """Wait for the end of ``child``, for ``event`` or for the timeout; True if it has ended."""
    happened = asyncio.create_task(event.wait())
    try:
        await asyncio.wait({child.ended, happened}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        happened.cancel()
    return not child.alive


async def stop(child: Child, grace_s: float, hurry: asyncio.Event) -> bool:
    """SIGTERM, then SIGKILL for the group after ``grace_s`` or when ``hurry`` is set.

    True if SIGTERM was enough.
    """
    child.terminate()
    if await ended_before(child, hurry, grace_s):
        return True
    child.kill()
    await child.ended
    return False
