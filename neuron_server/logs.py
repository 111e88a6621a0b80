"""The one logger set-up of all three programs.

Text lines look like TGI's (``2026-01-01T00:00:00.000000Z  INFO target: message``); ``--json-output`` gives
one object per line with ``timestamp``, ``level``, ``message``, ``target``.

A record with ``extra=inside(...)`` was logged inside spans, outermost first. Latency scripts read such lines,
so they have TGI's form: in text ``INFO outer:inner{field="value"}: target: file:line: message``, in JSON the
innermost as ``span`` and all of them as ``spans``, each with its ``name`` beside its fields.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from typing import TypeAlias


class Bare(str):
    """A field's value that stands in a text line without quotes."""

    __slots__ = ()


#: Name and fields of each span around a record, outermost first.
Spans: TypeAlias = "tuple[tuple[str, Mapping[str, str]], ...]"


def inside(spans: Spans, target: str) -> dict[str, object]:
    """The ``extra`` of a log call inside ``spans``; the line names ``target`` instead of its logger."""
    return {"spans": spans, "target": target}


#: TGI passes ``WARN`` and ``TRACE`` around, which Python's logging does not know.
_LEVELS = {"TRACE": logging.DEBUG, "WARN": logging.WARNING, "OFF": logging.CRITICAL}
#: The targets that filter expressions made for TGI name, and the loggers here that do the same work.
_TARGETS = {"text_generation_router": "neuron_server.router", "text_generation_server": "neuron_server"}
_OFF = ("0", "false", "no", "off")

_DIM, _RESET = "\x1b[2m", "\x1b[0m"
_COLOURS = {"DEBUG": "\x1b[34m", "INFO": "\x1b[32m", "WARN": "\x1b[33m"}
_RED = "\x1b[31m"


def level_from_env(default: str = "INFO") -> int:
    """The level that ``LOG_LEVEL`` names with the first plain word of its filter expression; else INFO."""
    text = os.environ.get("LOG_LEVEL", "") or default
    for part in text.split(","):
        if "=" not in part:
            return parse_level(part)
    return logging.INFO


def target_levels_from_env() -> dict[str, int]:
    """Logger -> level of the ``target=level`` parts of ``LOG_LEVEL``; TGI's targets name ours."""
    parts = (part.partition("=") for part in os.environ.get("LOG_LEVEL", "").split(",") if "=" in part)
    found = {}
    for target, _, level in parts:
        name = target.strip().replace("::", ".")
        first, dot, rest = name.partition(".")
        found[_TARGETS.get(first, first) + dot + rest] = parse_level(level)
    return found


def parse_level(text: str) -> int:
    """A logging level from a word in either project's spelling (``warn``, ``WARNING``, ``trace``)."""
    word = text.strip().upper()
    if word in _LEVELS:
        return _LEVELS[word]
    level = logging.getLevelName(word)
    return level if isinstance(level, int) else logging.INFO


def coloured() -> bool:
    """Whether text lines get colours: what ``LOG_COLORIZE`` says, else whether stdout is a terminal.

    TGI's code turns them off for ``1`` while its comment and its images mean ``0``; here ``0`` is off.
    """
    wish = os.environ.get("LOG_COLORIZE", "").strip().lower()
    return wish not in _OFF if wish else sys.stdout.isatty()


def timestamp(record: logging.LogRecord) -> str:
    """RFC 3339 in UTC with microseconds."""
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{whole}.{int(record.created % 1 * 1e6):06d}Z"


def level_name(record: logging.LogRecord) -> str:
    """The level as TGI spells it: ``WARN``, not ``WARNING``."""
    return "WARN" if record.levelno == logging.WARNING else record.levelname


def whole_message(record: logging.LogRecord, formatter: logging.Formatter) -> str:
    """The message, and below it the traceback if there is one."""
    message = record.getMessage()
    return f"{message}\n{formatter.formatException(record.exc_info)}" if record.exc_info else message


def text_line(record: logging.LogRecord, before: str, message: str, *, colour: bool) -> str:
    """``<time>  INFO <before>: <message>``."""
    stamp, level = timestamp(record), f"{level_name(record):>5}"
    if colour:
        level = _COLOURS.get(level.strip(), _RED) + level + _RESET
        stamp, before = _DIM + stamp + _RESET, _DIM + before + ":" + _RESET
        return f"{stamp} {level} {before} {message}"
    return f"{stamp} {level} {before}: {message}"


def _spans(record: logging.LogRecord) -> Spans:
    spans: Spans = getattr(record, "spans", ())
    return spans


def _target(record: logging.LogRecord) -> str:
    target: str = getattr(record, "target", record.name)
    return target


def _place(record: logging.LogRecord) -> str:
    """Where it was logged: the target, and around it what TGI tells of a line inside spans."""
    if not (spans := _spans(record)):
        return _target(record)
    around = ":".join(_span_text(*span) for span in spans)
    return f"{around}: {_target(record)}: {_source(record)}:{record.lineno}"


def _span_text(name: str, fields: Mapping[str, str]) -> str:
    if not fields:
        return name
    texts = (
        f"{k}={v if isinstance(v, Bare) else json.dumps(v, ensure_ascii=False)}" for k, v in fields.items()
    )
    return f"{name}{{{' '.join(texts)}}}"


def _source(record: logging.LogRecord) -> str:
    """The file of the record, as seen from the top of the source tree."""
    package = record.pathname.rpartition("neuron_server/")
    return "".join(package[1:])


class _TextFormatter(logging.Formatter):
    def __init__(self, *, colour: bool) -> None:
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        return text_line(record, _place(record), whole_message(record, self), colour=self._colour)


def json_line(record: logging.LogRecord, message: str) -> str:
    """One flat object, with the spans that the record was logged in."""
    stamp, level = timestamp(record), level_name(record)
    entry: dict[str, object] = {"timestamp": stamp, "level": level, "message": message}
    entry["target"] = _target(record)
    if spans := _spans(record):
        told = [{**fields, "name": name} for name, fields in spans]
        entry |= {"filename": _source(record), "line_number": record.lineno}
        entry |= {"span": told[-1], "spans": told}
    return json.dumps(entry, ensure_ascii=False)


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return json_line(record, whole_message(record, self))


def setup(
    *, json_output: bool = False, level: int | None = None, formatter: logging.Formatter | None = None
) -> None:
    """Send every logger of this process to stdout. Called by each program's ``main`` and nowhere else."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        formatter or (_JsonFormatter() if json_output else _TextFormatter(colour=coloured()))
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level_from_env() if level is None else level)
    for noisy in ("httpx", "httpcore", "urllib3", "filelock", "asyncio", "transformers"):
        logging.getLogger(noisy).setLevel(max(root.level, logging.WARNING))
    for target, target_level in target_levels_from_env().items():
        logging.getLogger(target).setLevel(target_level)
