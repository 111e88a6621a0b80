"""A tiny hub on localhost that speaks the two routes that fetching a model needs."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """Repositories by id, what each shall fail with, and the files that were fetched.

    ``cuts``: for each answer with weights in turn, after how many bytes the connection breaks. ``stalled`` is
    set where an answer with weights waits for ``go_on``, if ``stall`` is set. ``ranges`` is what was asked
    for in parts; ``tokens`` what was shown; ``token``, if set, must be shown.
    """

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    failures: dict[str, tuple[int, str]] = field(default_factory=dict)
    pipeline_tags: dict[str, str] = field(default_factory=dict)
    fetched: list[str] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    token: str | None = None
    tokens: set[str | None] = field(default_factory=set)
    stall: bool = False
    stalled: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)

    def answer(self, path: str, token: str | None = None) -> tuple[int, dict[str, str], bytes]:
        self.tokens.add(token)
        if self.token is not None and token != f"Bearer {self.token}":
            return 401, {"X-Error-Message": "Invalid credentials in Authorization header"}, b""
        api = re.fullmatch(r"/api/models/(.+?)(?:/revision/(.+))?", path)
        file = re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path)
        match = api or file
        if match is None:
            return 404, {}, b""
        model_id, revision = match[1], match[2] or "main"
        if model_id in self.failures:
            status, code = self.failures[model_id]
            return status, {"X-Error-Code": code}, b""
        if model_id not in self.repositories:
            return 401, {"X-Error-Code": "RepoNotFound"}, b""
        if revision not in ("main", "v1", COMMIT):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        files = self.repositories[model_id]
        if api:
            siblings = [{"rfilename": name, "size": len(body)} for name, body in files.items()]
            about: dict[str, object] = {"id": model_id, "sha": COMMIT, "siblings": siblings}
            if model_id in self.pipeline_tags:
                about["pipeline_tag"] = self.pipeline_tags[model_id]
            return 200, {}, json.dumps(about).encode()
        if match[3] not in files:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, b""
        self.fetched.append(match[3])
        body = files[match[3]]
        return 200, {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": COMMIT}, body


@contextmanager
def serving(hub: Hub) -> Iterator[str]:
    """Serve ``hub``; yields its address, which is what ``HF_ENDPOINT`` takes."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            status, headers, body = hub.answer(path, self.headers.get("Authorization"))
            if status == 200 and (part := self.headers.get("Range")):
                hub.ranges.append(part)
                start = int(part.removeprefix("bytes=").rstrip("-"))
                headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
                status, body = 206, body[start:]
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.send_body(body, weights=path.endswith(".safetensors"))

        def send_body(self, body: bytes, *, weights: bool) -> None:
            if weights and hub.stall:
                hub.stalled.set()
                hub.go_on.wait()
            if weights and hub.cuts:
                self.wfile.write(body[: hub.cuts.pop(0)])
                self.wfile.flush()
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815 http.server's name

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        hub.go_on.set()
        server.shutdown()
        server.server_close()
        thread.join()
