"""The lines of the launcher's log: its own, and those of its children that it says again.

Form and spans are those of TGI's launcher, because log pipelines parse them. As text
``<time>  INFO shard-manager: text_generation_launcher: <message> rank=0``; as JSON the message stands in
``fields`` and the span beside it. The router's lines are not touched: they are flat, in TGI too.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass

from launcher.output import Output
from neuron_server import logs

log = logging.getLogger("text_generation_launcher")

ROUTER = "webserver"
DOWNLOAD = "download"
_SHARD = "shard "


def shard_name(rank: int) -> str:
    """The name of a generator's process."""
    return f"{_SHARD}{rank}"


@dataclass(frozen=True, slots=True)
class Span:
    """What a line belongs to: ``shard-manager`` of a rank, or ``download``."""

    name: str
    rank: int | None = None

    @classmethod
    def of(cls, child: str) -> Span | None:
        """The span of a child's lines; ``None`` for the router's, which have their own."""
        if child.startswith(_SHARD):
            return cls("shard-manager", int(child.removeprefix(_SHARD)))
        return cls(child) if child == DOWNLOAD else None

    @property
    def extra(self) -> dict[str, Span]:
        """For ``log.info(..., extra=span.extra)``."""
        return {"span": self}

    @property
    def entry(self) -> dict[str, int | str]:
        """``{"rank": 0, "name": "shard-manager"}``"""
        return {"name": self.name} if self.rank is None else {"rank": self.rank, "name": self.name}


DOWNLOADING = Span(DOWNLOAD)


class TextFormatter(logging.Formatter):
    """Lines for people."""

    def __init__(self, *, colour: bool) -> None:
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        """One record as text; its message may have many lines."""
        span = _span(record)
        message = logs.whole_message(record, self)
        before = f"{span.name}: {record.name}" if span else record.name
        if span is not None and span.rank is not None:
            message += f" rank={span.rank}"
        return logs.text_line(record, before, message, colour=self._colour)


class JsonFormatter(logging.Formatter):
    """One object per line, as ``tracing-subscriber`` nests them."""

    def format(self, record: logging.LogRecord) -> str:
        """One record as JSON, whatever its message holds."""
        entry: dict[str, object] = {
            "timestamp": logs.timestamp(record),
            "level": logs.level_name(record),
            "fields": {"message": logs.whole_message(record, self)},
            "target": record.name,
        }
        if span := _span(record):
            entry.update(span=span.entry, spans=[span.entry])
        return json.dumps(entry, ensure_ascii=False)


def _span(record: logging.LogRecord) -> Span | None:
    span = getattr(record, "span", None)
    return span if isinstance(span, Span) else None


def setup(output: Output, *, json_output: bool) -> None:
    """Send the launcher's log to ``output``."""
    formatter = JsonFormatter() if json_output else TextFormatter(colour=logs.coloured())
    logs.setup(formatter=formatter)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(output)


def log_entry(line: bytes) -> tuple[int, str] | None:
    """Level and message of a child's JSON log line; ``None`` for anything else."""
    entry = _json_object(line)
    message = entry.get("message") if entry is not None else None
    if entry is None or not isinstance(message, str):
        return None
    return logs.parse_level(str(entry.get("level"))), message


def readable(line: bytes) -> str:
    """What a line says: the message of a JSON log line, else the line itself."""
    entry = log_entry(line)
    return (line.decode(errors="replace") if entry is None else entry[1]).rstrip()


def _json_object(line: bytes) -> Mapping[str, object] | None:
    if not line.lstrip().startswith(b"{"):
        return None
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


class Relay:
    """Takes each line of each child (a ``Forward``) and puts it into the launcher's output.

    The router's pass as they are; with ``--json-output`` what is not JSON among them is wrapped. The others
    log JSON, which is said again at its level, and what is not JSON is heard at debug level only: as in TGI,
    it is kept for their last words (``Child.last_words``).
    """

    def __init__(self, output: Output, *, json_output: bool) -> None:
        self._output = output
        self._json_output = json_output

    def __call__(self, name: str, line: bytes) -> None:
        """One line, its newline included."""
        span = Span.of(name)
        if span is None:
            self._pass_on(name, line)
        elif (entry := log_entry(line)) is not None:
            _say_again(*entry, span)
        elif text := line.decode(errors="replace").rstrip():
            log.debug("%s", text, extra=span.extra)

    def _pass_on(self, name: str, line: bytes) -> None:
        if self._json_output and _json_object(line) is None:
            text = line.decode(errors="replace").rstrip()
            line = _wrapped(text, name, logging.INFO) if text else b""
        self._output.write_bytes(line)


def _wrapped(text: str, target: str, level: int) -> bytes:
    """A flat log line, as the router writes them, for a text that came without one."""
    record = log.makeRecord(target, level, "", 0, text, (), None)
    return logs.json_line(record, text).encode() + b"\n"


def dropped(pieces: int) -> bytes:
    """The JSON line that stands where nobody read: an ``Output``'s ``notice``."""
    return _wrapped(f"{pieces} pieces of output dropped: nobody read them", log.name, logging.WARNING)


def _say_again(level: int, message: str, span: Span) -> None:
    """Log a child's message; the child has filtered by level already, so nothing is filtered twice."""
    record = log.makeRecord(log.name, level, "", 0, message.rstrip(), (), None, extra=span.extra)
    log.handle(record)
