"""Asks the router how it and the generators are, in a few lines and without an HTTP library."""

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
    """``GET /health``; never raises for what the other side does."""
    status, body = await _get(hostname, port, "/health")
    return Health(status, _phase(body))


async def replica_phases(hostname: str, port: int) -> tuple[str, ...]:
    """What ``GET /info`` calls each generator, by rank; empty when nobody answers, or nobody of ours."""
    status, body = await _get(hostname, port, "/info")
    try:
        replicas = json.loads(body)["replicas"] if status == 200 else ()
        return tuple(str(replica["phase"]) for replica in replicas)
    except (ValueError, TypeError, LookupError, RecursionError):
        return ()


async def _get(hostname: str, port: int, path: str) -> tuple[int, bytes]:
    """Status and body; status 0 when nobody answers in time."""
    try:
        return await asyncio.wait_for(_exchange(local_address(hostname), port, path), _TIMEOUT_S)
    except (OSError, asyncio.TimeoutError, ValueError):
        return 0, b""


async def _exchange(address: str, port: int, path: str) -> tuple[int, bytes]:
    reader, writer = await asyncio.open_connection(address, port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        await writer.drain()
        answer = await reader.read(_MOST_BYTES)
        while chunk := await reader.read(_MOST_BYTES):
            answer = (answer + chunk)[:_MOST_BYTES]
    finally:
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return (int(head.split(b" ", 2)[1]) if b" " in head else 0), body


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
