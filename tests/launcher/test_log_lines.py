from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator

import pytest

from launcher import log_lines
from launcher.log_lines import DOWNLOADING, Relay, Span, log, readable
from launcher.output import Output

STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"
SHARD = Span("shard-manager", 0)


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root, handlers = logging.getLogger(), logging.getLogger().handlers[:]
    levels = [(logger, logger.level) for logger in (root, log, logging.getLogger("neuron_server"))]
    yield
    for logger, level in levels:
        logger.setLevel(level)
    root.handlers[:] = handlers


def said(do: Callable[[Relay], None], *, json_output: bool) -> list[str]:
    """The lines on the launcher's output."""
    reader, writer = os.pipe()
    output = Output(writer)
    log_lines.setup(output, json_output=json_output)
    do(Relay(output, json_output=json_output))
    output.close()
    os.close(writer)
    with os.fdopen(reader) as file:
        return file.read().splitlines()


def test_a_text_line_has_its_span_before_and_the_rank_behind():
    def do(_: Relay) -> None:
        log.info("Starting shard", extra=SHARD.extra)
        log.warning("Slow", extra=DOWNLOADING.extra)
        log.info("Starting Webserver")

    shard, download, own = said(do, json_output=False)
    assert re.fullmatch(
        STAMP + "  INFO shard-manager: text_generation_launcher: Starting shard rank=0", shard
    )
    assert re.fullmatch(STAMP + "  WARN download: text_generation_launcher: Slow", download)
    assert re.fullmatch(STAMP + "  INFO text_generation_launcher: Starting Webserver", own)


def test_a_json_line_nests_its_message_and_names_its_span():
    def do(_: Relay) -> None:
        log.info("Starting shard", extra=SHARD.extra)
        log.error("two\nlines")

    shard, own = map(json.loads, said(do, json_output=True))
    assert re.fullmatch(STAMP, shard.pop("timestamp"))
    assert shard == {
        "level": "INFO",
        "fields": {"message": "Starting shard"},
        "target": "text_generation_launcher",
        "span": {"rank": 0, "name": "shard-manager"},
        "spans": [{"rank": 0, "name": "shard-manager"}],
    }
    assert own["fields"] == {"message": "two\nlines"}
    assert set(own) == {"timestamp", "level", "fields", "target"}


@pytest.mark.parametrize("json_output", [False, True])
def test_a_generators_lines_are_said_again_at_their_level_in_its_span(json_output):
    def do(relay: Relay) -> None:
        relay("shard 1", b'{"level": "WARN", "message": "warming up\\n", "target": "x"}\n')

    (line,) = said(do, json_output=json_output)
    if json_output:
        entry = json.loads(line)
        assert (entry["level"], entry["fields"]["message"]) == ("WARN", "warming up")
        assert entry["span"] == {"rank": 1, "name": "shard-manager"}
    else:
        assert line.endswith("  WARN shard-manager: text_generation_launcher: warming up rank=1")


@pytest.mark.parametrize("json_output", [False, True])
@pytest.mark.parametrize("line", [b"compiler: 50 %\n", b"{'not': 'json'}\n", b'{"text": 1}\n', b"\xff\xfe\n"])
def test_what_a_generator_prints_besides_is_heard_at_debug_level_only(json_output, line, monkeypatch):
    def do(relay: Relay) -> None:
        relay("shard 0", line)
        relay("shard 0", b"\n")

    monkeypatch.delenv("LOG_LEVEL", raising=False)
    assert said(do, json_output=json_output) == []
    monkeypatch.setenv("LOG_LEVEL", "debug")
    (heard,) = said(do, json_output=json_output)
    assert "DEBUG" in heard
    assert line.decode(errors="replace").strip()[:8] in (
        json.loads(heard)["fields"]["message"] if json_output else heard
    )


def test_a_childs_debug_lines_pass_where_the_child_was_asked_for_them(monkeypatch):
    monkeypatch.setenv("LOG_LEVEL", "neuron_server=debug,info")

    def do(relay: Relay) -> None:
        relay("shard 0", b'{"level": "DEBUG", "message": "step 1"}\n')

    assert "DEBUG shard-manager: text_generation_launcher: step 1" in said(do, json_output=False)[0]


def test_the_routers_lines_are_not_touched():
    lines = [b'{"timestamp":"t","level":"INFO","message":"Success","span":{"name":"generate"}}\n']
    for json_output in (False, True):
        assert said(lambda relay: relay("webserver", lines[0]), json_output=json_output) == [
            lines[0].decode().strip()
        ]
    text = b"2026-01-01T00:00:00.000000Z  INFO neuron_server.router: Connected\n"
    assert said(lambda relay: relay("webserver", text), json_output=False) == [text.decode().strip()]


@pytest.mark.parametrize(
    "line",
    [b"Traceback (most recent call last):\n", b"{not json\n", b"  indented\n", b"[1]\n", b"{" * 100_000],
)
def test_with_json_output_what_the_router_prints_besides_is_wrapped(line):
    def do(relay: Relay) -> None:
        relay("webserver", line)
        relay("webserver", b"   \n")

    (heard,) = said(do, json_output=True)
    entry = json.loads(heard)
    assert entry["message"] == line.decode().rstrip()
    assert (entry["target"], entry["level"]) == ("webserver", "INFO")
    assert re.fullmatch(STAMP, entry["timestamp"])


def test_lines_nobody_read_are_counted_in_json_too():
    entry = json.loads(log_lines.dropped(3))
    assert (entry["level"], entry["message"]) == ("WARN", "3 pieces of output dropped: nobody read them")


def test_a_json_log_line_reads_as_its_message():
    assert readable(b'{"level": "ERROR", "message": "no memory\\nleft"}\n') == "no memory\nleft"
    assert readable(b"plain\n") == "plain"
    assert readable(b'{"path": "/p"}\n') == '{"path": "/p"}'


@pytest.mark.parametrize(
    ("wish", "terminal", "coloured"),
    [
        (None, True, True),
        (None, False, False),
        ("0", True, False),
        ("false", True, False),
        ("1", False, True),
    ],
)
def test_colours_follow_the_terminal_unless_told(wish, terminal, coloured, monkeypatch):
    if wish is None:
        monkeypatch.delenv("LOG_COLORIZE", raising=False)
    else:
        monkeypatch.setenv("LOG_COLORIZE", wish)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    (line,) = said(lambda _: log.info("hello"), json_output=False)
    assert ("\x1b[" in line) is coloured
    (line,) = said(lambda _: log.info("hello"), json_output=True)
    assert "\\u001b" not in line
    assert "\x1b" not in line
