"""Stand-ins for the real programs, and an ear for the launcher's log."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.supervisor import Programs

# Makes ``planning`` importable for the tests of this directory.
sys.path.insert(0, str(Path(__file__).parent))

#: Both stand-ins take the real command lines. What they do beyond that is in the environment.
_GENERATOR = """
import os, signal, socket, sys, time
words = [w for a in sys.argv for w in a.split("=", 1)]
path = words[words.index("--uds-path") + 1]
count = os.environ["COUNT_FILE"]
rank = path[-1]
for name in (count, count + "." + rank):
    with open(name, "a") as f:
        f.write(f"{os.getpid()}\\n")
starts = len(open(count + "." + rank).read().split())
plan = os.environ.get("GENERATOR_" + rank, os.environ.get("GENERATOR", "serve")).split(",")
what = plan[min(starts, len(plan)) - 1]
if what.startswith("exit"):
    print("the last words of the generator", file=sys.stderr)
    sys.exit(int(what[4:]))
if what == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if what == "huge":
    sys.stdout.write("x" * 3_000_000 + "\\nafter the huge line\\n")
    sys.stdout.flush()
if what == "late":
    open(os.environ["GATE"]).read()
s = socket.socket(socket.AF_UNIX)
s.bind(path)
s.listen()
print("generator", os.getpid(), "listens")
print("its cores", os.environ.get("NEURON_RT_VISIBLE_CORES"), os.environ.get("NEURON_RT_NUM_CORES"))
while True:
    time.sleep(60)
"""
_ROUTER = """
import json, os, signal, socket, sys, time
def values(flag):
    words = [w for a in sys.argv for w in a.split("=", 1)]
    return [words[i + 1] for i, word in enumerate(words) if word == flag]
def value(flag):
    return values(flag)[0]
def phase(rank, path):
    if os.path.exists(os.environ["COUNT_FILE"] + ".lost." + str(rank)):
        return "lost"  # to this router, whoever listens there
    try:
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(path)
        return "ready"
    except OSError:
        return "loading"
mode = os.environ.get("ROUTER", "serve")
if mode.startswith("exit"):
    print("the last words of the router")
    sys.exit(int(mode[4:]))
def drain(*_):
    print("draining")
    while mode == "busy" and len(open(os.environ["COUNT_FILE"]).read().split()) < 2:
        time.sleep(0.01)  # what it has to finish needs a second generator
    sys.exit(0)
signal.signal(signal.SIGTERM, signal.SIG_IGN if mode == "stubborn" else drain)
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind((value("--hostname"), int(value("--port"))))
s.listen()
print("router", os.getpid(), "key", os.environ.get("NEURON_TGI_API_KEY"))
while True:
    c, _ = s.accept()
    asked = c.recv(4096)
    phases = [phase(*one) for one in enumerate(values("--shard-uds-paths"))]
    if asked.startswith(b"GET /info "):
        c.sendall(b"HTTP/1.1 200 OK\\r\\n\\r\\n")
        c.sendall(json.dumps({"replicas": [{"phase": p} for p in phases]}).encode())
    elif "ready" in phases:
        c.sendall(b"HTTP/1.1 200 OK\\r\\n\\r\\n")
    else:
        c.sendall(b'HTTP/1.1 503 Not Ready\\r\\n\\r\\n{"error":"loading","error_type":"unavailable"}')
    c.close()
"""


@pytest.fixture
def programs(tmp_path: Path) -> Programs:
    """The stand-ins as command lines."""
    for name, text in (("generator.py", _GENERATOR), ("router.py", _ROUTER)):
        (tmp_path / name).write_text(text)
    python = (sys.executable, "-S", "-E", "-u")
    return Programs((*python, str(tmp_path / "generator.py")), (*python, str(tmp_path / "router.py")))


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """The environment of the stand-ins; ``COUNT_FILE`` gets the process id of each generator started."""
    return {"PATH": os.environ["PATH"], "COUNT_FILE": str(tmp_path / "generators")}


class Heard(logging.Handler):
    """The launcher's log, and a way to wait for a line of it."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self._changed = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        self._changed.set()

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    async def until(self, pattern: str, times: int = 1) -> None:
        """Return once ``pattern`` was said that often."""

        async def wait() -> None:
            while sum(bool(re.search(pattern, line)) for line in self.lines) < times:
                self._changed.clear()
                await self._changed.wait()

        try:
            await asyncio.wait_for(wait(), 20)
        except asyncio.TimeoutError:
            pytest.fail(f"never said {pattern!r}:\n{self.text}")


@pytest.fixture
def heard() -> Iterator[Heard]:
    handler = Heard()
    logger = logging.getLogger("text_generation_launcher")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)
