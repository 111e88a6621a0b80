"""Asks the router how it is: ``GET /health``, in a few lines and without an HTTP library."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass

_TIMEOUT_S = 2.0
_MOST_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Health:
    """The status of the answer and what it says; status 0 when nobody answers yet."""

    status: int
    text: str = ""

    @property
    def ready(self) -> bool:
        """Whether requests will be answered."""
        return self.status == 200


def local_address(hostname: str) -> str:
    """Where this machine reaches a server that listens on ``hostname``."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(hostname, hostname)  # noqa: S104 not a bind


def url(hostname: str, port: int) -> str:
    """``http://127.0.0.1:3000``, to be pasted into this machine's terminal."""
    address = local_address(hostname)
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"


async def ask(hostname: str, port: int) -> Health:
    """One probe; never raises for what the other side does."""
    try:
        return await asyncio.wait_for(_ask(local_address(hostname), port), _TIMEOUT_S)
    except (OSError, asyncio.TimeoutError, ValueError):
        return Health(0)


async def _ask(address: str, port: int) -> Health:
    reader, writer = await asyncio.open_connection(address, port)
    try:
        writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        await writer.drain()
        answer = await reader.read(_MOST_BYTES)
        while chunk := await reader.read(_MOST_BYTES):
            answer = (answer + chunk)[:_MOST_BYTES]
    finally:
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return Health(int(head.split(b" ", 2)[1]) if b" " in head else 0, _phase(body))


def _phase(body: bytes) -> str:
    """What the body says, in one line: our ``phase``, else TGI's ``error``, else the text itself."""
    text = body.decode(errors="replace").strip()
    try:
        value = json.loads(text)
    except ValueError:
        return text[:200]
    if isinstance(value, dict):
        text = str(value.get("phase") or value.get("error") or text)
    return text[:200]
