"""A request's body, from its bytes to what its route reads it as."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from starlette.requests import Request

from neuron_server.router.json_body import Document, parse, read_body
from neuron_server.router.serde import Schema, deserialize

S = TypeVar("S", bound=Schema)
T = TypeVar("T")

#: Bodies beyond this many bytes are parsed in a thread, so that streams go on meanwhile.
_LARGE_BODY = 65_536


async def read(request: Request, model: type[S], limit: int) -> S:
    """The request's body as a ``model``; raises ``BodyRefusedError``."""
    return await read_as(request, lambda document: deserialize(model, document), limit)


async def read_as(request: Request, fit: Callable[[Document], T], limit: int) -> T:
    """The request's body as what ``fit`` makes of it; raises ``BodyRefusedError`` as ``fit`` may."""
    body = await read_body(request.headers, request.stream(), limit)
    if len(body) > _LARGE_BODY:
        return await asyncio.to_thread(lambda: fit(parse(body)))
    return fit(parse(body))
