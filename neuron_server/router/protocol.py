"""HTTP/1 as uvicorn speaks it, mended in four places where a client could notice or do harm."""

from __future__ import annotations

from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

#: A request line and headers that are longer are refused; uvicorn itself would collect them without end.
MAX_HEAD_BYTES = 65_536


class Protocol(HttpToolsProtocol):
    """One connection.

    *Upgrades are declined*, not half accepted: ``curl --http2`` and Java's ``HttpClient`` offer h2c with the
    first request, and the parser would leave that request without its body. *A client that leaves* is noticed
    by all of its pipelined requests, not by the last one alone. *Endless headers* end in a 400. *A client of
    HTTP/1.0*, as nginx is to what is behind it unless told otherwise, gets a stream without chunks.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:  # as uvicorn calls it
        super().__init__(*args, **settings)
        self.parser = _Parser(self)
        self._offered = False
        self._in_head = True
        self._head_bytes = 0
        self._cycles: list[RequestResponseCycle] = []

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response("Request headers are too long.")

    def connection_lost(self, exc: Exception | None) -> None:
        for cycle in self._cycles:
            if not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        super().connection_lost(exc)

    def decline(self, rest: bytes) -> None:
        """Read the request again as one that offers no upgrade; ``rest`` follows its headers."""
        if self.parser.get_method() == b"CONNECT":  # without a header to leave out: it would be offered again
            self.send_400_response("This server is no proxy.")
            return
        version = self.parser.get_http_version().encode()
        head = [self.parser.get_method(), b" ", self.url, b" HTTP/", version, b"\r\n"]
        for name, value in self.headers:
            if name != b"upgrade":
                head += [name, b": ", value, b"\r\n"]
        self._offered = False
        self.parser = _Parser(self)
        self.parser.feed_data(b"".join([*head, b"\r\n", rest]))

    # -- the parser calls these ------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self.parser.should_upgrade():
            self._offered = True
            return
        super().on_headers_complete()
        if self.parser.get_http_version() == "1.0":
            self.cycle.__class__ = _CycleOfHttp10  # uvicorn has no setting for it; nothing was sent yet
        self._cycles = [cycle for cycle in self._cycles if not cycle.response_complete]
        self._cycles.append(self.cycle)

    def on_message_complete(self) -> None:
        if not self._offered:
            super().on_message_complete()


class _CycleOfHttp10(RequestResponseCycle):
    """A body of unknown length ends with the connection, which such a request always closes."""

    _open_ended = False

    async def send(self, message: Any) -> None:  # any ASGI event, which uvicorn types by a package of its own
        if message["type"] == "http.response.start":
            if all(name.lower() != b"content-length" for name, _ in message.get("headers", ())):
                self.chunked_encoding = False
                self._open_ended = True
        elif self._open_ended:
            self.expected_content_length = len(message.get("body", b""))
        await super().send(message)


class _Parser(httptools.HttpRequestParser):
    """Reads on where an upgrade is offered."""

    def __init__(self, protocol: Protocol) -> None:
        super().__init__(protocol)
        self.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own
        self._protocol = protocol

    def feed_data(self, data: Any) -> None:  # any buffer, in its stub's words
        try:
            super().feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            self._protocol.decline(data[offer.args[0] :])
