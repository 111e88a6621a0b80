"""The one logger set-up of all three programs.

Text lines look like TGI's (``2026-01-01T00:00:00.000000Z  INFO target: message``); ``--json-output`` gives
one object per line with ``timestamp``, ``level``, ``message``, ``target``.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time

#: TGI passes ``WARN`` and ``TRACE`` around, which Python's logging does not know.
_LEVELS = {"TRACE": logging.DEBUG, "WARN": logging.WARNING, "OFF": logging.CRITICAL}


def level_from_env(default: str = "INFO") -> int:
    """The level that ``LOG_LEVEL`` names with the first plain word of its filter expression; else INFO."""
    text = os.environ.get("LOG_LEVEL", "") or default
    for part in text.split(","):
        if "=" not in part:
            return parse_level(part)
    return logging.INFO


def parse_level(text: str) -> int:
    """A logging level from a word in either project's spelling (``warn``, ``WARNING``, ``trace``)."""
    word = text.strip().upper()
    if word in _LEVELS:
        return _LEVELS[word]
    level = logging.getLevelName(word)
    return level if isinstance(level, int) else logging.INFO


def _timestamp(record: logging.LogRecord) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{whole}.{int(record.created % 1 * 1e6):06d}Z"


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        level = "WARN" if record.levelno == logging.WARNING else record.levelname
        line = f"{_timestamp(record)} {level:>5} {record.name}: {record.getMessage()}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        level = "WARN" if record.levelno == logging.WARNING else record.levelname
        message = record.getMessage()
        if record.exc_info:
            message += "\n" + self.formatException(record.exc_info)
        entry = {"timestamp": _timestamp(record), "level": level, "message": message, "target": record.name}
        return json.dumps(entry, ensure_ascii=False)


def setup(*, json_output: bool = False, level: int | None = None) -> None:
    """Send every logger of this process to stdout. Called by each program's ``main`` and nowhere else."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_JsonFormatter() if json_output else _TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level_from_env() if level is None else level)
    for noisy in ("httpx", "httpcore", "urllib3", "filelock", "asyncio", "transformers"):
        logging.getLogger(noisy).setLevel(max(root.level, logging.WARNING))
