"""Spans as the two programs make them, whoever exports them.

Nothing here knows OpenTelemetry: ``otlp.py`` implements ``Tracer`` on it and is imported only by a program
that was given ``--otlp-endpoint``. Everybody else gets ``NO_TRACER``, whose spans cost a call each, and
nothing per token. Spans are passed on explicitly, as arguments: an asynchronous generator runs in the context
of whoever asks for its next item, so a "current span" would be the wrong one.

Seconds (``*_s``) are ``time.monotonic()``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import TracebackType
from typing import Literal, NamedTuple, Protocol
from urllib.parse import urlsplit

from neuron_server.errors import ConfigError

Attributes = Mapping[str, "str | bool | int | float"]
Kind = Literal["internal", "server", "client"]

_NONE: Attributes = {}


class Span(Protocol):
    """A named stretch of work in a trace. ``with span:`` ends it, and marks it failed by an exception."""

    @property
    def traceparent(self) -> str | None:
        """W3C trace context of this span, for whoever goes on with its work; ``None``: it is not traced."""
        ...

    def child(
        self,
        name: str,
        attributes: Attributes = _NONE,
        *,
        kind: Kind = "internal",
        started_s: float | None = None,
    ) -> Span:
        """A span within this one; it began at ``started_s``, or begins now."""
        ...

    def rename(self, name: str) -> None:
        """For what is known only later, as the route of a request."""
        ...

    def set(self, attributes: Attributes) -> None:
        """Add or overwrite attributes."""
        ...

    def event(self, name: str, attributes: Attributes = _NONE) -> None:
        """Something that happened now."""
        ...

    def fail(self, error: BaseException | str) -> None:
        """Mark it as failed, and say why. The first reason stays."""
        ...

    def end(self, at_s: float | None = None) -> None:
        """It is over, now or since ``at_s``. Idempotent; what is said of it later is lost."""
        ...

    def __enter__(self) -> Span: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Tracer(Protocol):
    """Where spans begin, and how they leave the process."""

    @property
    def enabled(self) -> bool:
        """False when nothing is exported: then there is no reason to ask for spans at all."""
        ...

    def start(
        self,
        name: str,
        attributes: Attributes = _NONE,
        *,
        traceparent: str | None = None,
        kind: Kind = "internal",
    ) -> Span:
        """A span below one of another process, or (no or a malformed ``traceparent``) of a new trace."""
        ...

    def close(self) -> None:
        """Send what is waiting, within a short bound. Blocks; called at the program's end."""
        ...


class _NoSpan:
    """Does nothing, and is its own child."""

    traceparent: str | None = None

    def child(
        self,
        name: str,  # noqa: ARG002
        attributes: Attributes = _NONE,  # noqa: ARG002
        *,
        kind: Kind = "internal",  # noqa: ARG002
        started_s: float | None = None,  # noqa: ARG002
    ) -> Span:
        return self

    def rename(self, name: str) -> None:
        pass

    def set(self, attributes: Attributes) -> None:
        pass

    def event(self, name: str, attributes: Attributes = _NONE) -> None:
        pass

    def fail(self, error: BaseException | str) -> None:
        pass

    def end(self, at_s: float | None = None) -> None:
        pass

    def __enter__(self) -> Span:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class _NoTracer:
    enabled = False

    def start(
        self,
        name: str,  # noqa: ARG002
        attributes: Attributes = _NONE,  # noqa: ARG002
        *,
        traceparent: str | None = None,  # noqa: ARG002
        kind: Kind = "internal",  # noqa: ARG002
    ) -> Span:
        return NO_SPAN

    def close(self) -> None:
        pass


NO_SPAN: Span = _NoSpan()
NO_TRACER: Tracer = _NoTracer()


class TraceParent(NamedTuple):
    """A parsed W3C ``traceparent``."""

    trace_id: int
    span_id: int
    flags: int


_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})", re.IGNORECASE)


def parse_traceparent(text: str) -> TraceParent | None:
    """``version-trace-span-flags`` in hex; ``None`` for anything else, version ff and ids of zeros included.

    Exactly four parts, as TGI has it, which leaves out longer forms that a later version may define.
    """
    match = _TRACEPARENT.fullmatch(text.strip())
    if match is None:
        return None
    version, *rest = (int(part, 16) for part in match.groups())
    parsed = TraceParent(*rest)
    return parsed if version != 0xFF and parsed.trace_id and parsed.span_id else None


class Endpoint(NamedTuple):
    """``authority`` is ``host:port``; ``secure`` means TLS."""

    authority: str
    secure: bool


#: Where collectors listen for OTLP over gRPC.
_OTLP_PORT = 4317


def parse_endpoint(url: str) -> Endpoint:
    """What ``--otlp-endpoint`` names: ``http://host[:port]``, ``https://...`` (TLS), or ``host:port``.

    Raises ``ConfigError``. Whether anybody listens there is not looked at: a collector may come later.
    """
    wrong = ConfigError(
        f"--otlp-endpoint {url!r} is no address of an OTLP collector: "
        f"write http://host:{_OTLP_PORT} (or https:// for TLS)"
    )
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host, port = parts.hostname, parts.port
    except ValueError:  # a port that is no number, a bracket that does not close
        raise wrong from None
    plain = parts.path in ("", "/") and not (parts.query or parts.fragment or "@" in parts.netloc)
    if parts.scheme not in ("http", "https") or not host or not plain or port == 0:
        raise wrong
    if not re.fullmatch(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+", host):
        raise wrong
    name = f"[{host}]" if ":" in host else host
    return Endpoint(f"{name}:{_OTLP_PORT if port is None else port}", parts.scheme == "https")
