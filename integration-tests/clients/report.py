"""Runs the checks of one client against one server and prints what happened, one JSON object."""

from __future__ import annotations

import contextlib
import json
import sys
import traceback
from collections.abc import Callable, Iterator

PROMPT = "The list type is"
QUESTION = [{"role": "user", "content": "Hello"}]

#: What every client is asked to do; a check raises when its client does not get what it should.
FEATURES = ("generate", "stream", "chat", "stream chat", "error")


class ClientDefectError(Exception):
    """The client cannot do this with TGI either; the text says why."""


def run(client: str, *checks: Callable[[str], None]) -> None:
    """``checks`` in the order of ``FEATURES``, each given the server's base URL (the first argument)."""
    results = {}
    for feature, check in zip(FEATURES, checks, strict=True):
        try:
            check(sys.argv[1])
            results[feature] = "pass"
        except ClientDefectError as defect:
            results[feature] = f"client defect: {defect}"
        except Exception:  # noqa: BLE001 - whatever a client raises is the result
            results[feature] = traceback.format_exc()
    print(json.dumps({"client": client, "results": results}))


@contextlib.contextmanager
def refused(kind: type[Exception], word: str) -> Iterator[None]:
    """Passes if the block raises ``kind`` with ``word`` in its text."""
    try:
        yield
    except kind as refusal:
        if word not in str(refusal):
            raise
        return
    raise AssertionError(f"what should have raised {kind.__name__} was accepted")
