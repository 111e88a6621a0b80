"""Real processes: the launcher as a user starts it, and what a test needs to watch it."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import httpx
import pytest

LAUNCHER = Path(sys.executable).with_name("text-generation-launcher")
DEMO_MODEL = Path(__file__).parents[1] / "neuron_server" / "demo_model"

#: Variables that flags read; the machine that runs the tests must not change what they say.
_FLAG_VARIABLES = (
    "MODEL_ID",
    "PORT",
    "HOSTNAME",
    "MAX_BATCH_SIZE",
    "MAX_TOTAL_TOKENS",
    "LOG_LEVEL",
    "REVISION",
)


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Server:
    """One launcher process and the log lines it has printed so far."""

    def __init__(
        self,
        *flags: str,
        env: dict[str, str] | None = None,
        port: int | None = None,
        argv: list[str] | None = None,
        stderr: int | IO[bytes] = subprocess.STDOUT,
    ) -> None:
        """``argv`` takes the place of the launcher, its address and ``flags``."""
        self.port = port or free_port()
        self.base_url = f"http://127.0.0.1:{self.port}"
        environment = {k: v for k, v in os.environ.items() if k not in _FLAG_VARIABLES}
        environment.update(env or {})
        argv = argv or [str(LAUNCHER), "--hostname", "127.0.0.1", "--port", str(self.port), *flags]
        self.process = subprocess.Popen(
            argv,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=environment,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self._arrivals: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            self._arrivals.put(line)
        self._arrivals.put(None)

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def wait_for_line(self, pattern: str, timeout: float = 90) -> str:
        """The next log line (not yet waited for) that matches; fails with all output if it never comes."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                line = self._arrivals.get(timeout=max(0.01, deadline - time.monotonic()))
            except queue.Empty:
                pytest.fail(f"no line like {pattern!r} in {timeout} s; so far:\n{self.output}")
            if line is None:
                self._arrivals.put(None)
                pytest.fail(f"the launcher ended ({self.process.poll()}) before {pattern!r}:\n{self.output}")
            if re.search(pattern, line):
                return line

    def wait_ready(self, timeout: float = 90) -> Server:
        self.wait_for_line(r"Ready: ", timeout)
        return self

    def wait_exit(self, timeout: float = 60) -> int:
        code = self.process.wait(timeout)
        self._reader.join(10)
        return code

    def children(self) -> dict[str, int]:
        """Pids of the launcher's children by program name (``serve_generator``, ``serve_router``)."""
        found = {}
        for pid, argv, parent in _processes():
            if parent == self.process.pid:
                for name in ("serve_generator", "serve_router"):
                    if any(name in a for a in argv):
                        found[name] = pid
        return found

    def generators(self) -> dict[int, int]:
        """Pids of the generators that run, by rank."""
        found = {}
        for pid, argv, parent in _processes():
            uds = next((a for a in argv if a.startswith("--uds-path=")), "")
            if parent == self.process.pid and uds and alive(pid):
                found[int(uds.rpartition("-")[2])] = pid
        return found

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.wait_exit()
        except subprocess.TimeoutExpired:
            for pid in {*self.children().values(), *self.generators().values(), self.process.pid}:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            raise

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.base_url, timeout=60)


def _processes() -> Iterator[tuple[int, list[str], int]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                argv = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                stat = (entry / "stat").read_text()
                yield int(entry.name), argv, int(stat.rsplit(")", 1)[1].split()[1])


def alive(pid: int) -> bool:
    """Whether the process runs; one that waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_gone(pids: list[int], timeout: float = 20) -> list[int]:
    """The pids still alive after at most ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while (left := [p for p in pids if alive(p)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left
