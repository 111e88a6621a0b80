"""A tiny hub on localhost that speaks the two routes that fetching a model needs."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """Repositories by id, what each shall fail with, and the files that were fetched."""

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    failures: dict[str, tuple[int, str]] = field(default_factory=dict)
    fetched: list[str] = field(default_factory=list)

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
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
            siblings = [{"rfilename": name} for name in files]
            return 200, {}, json.dumps({"id": model_id, "sha": COMMIT, "siblings": siblings}).encode()
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
            status, headers, body = hub.answer(self.path.partition("?")[0])
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
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
        server.shutdown()
        server.server_close()
        thread.join()
