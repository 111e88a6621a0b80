"""One logger set-up: the line formats, and the levels both projects' spellings mean."""

from __future__ import annotations

import json
import logging
import re

import pytest

from neuron_server import logs


@pytest.fixture(autouse=True)
def restored_loggers():
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    noisy = {name: logging.getLogger(name).level for name in ("httpx", "asyncio", "transformers")}
    yield
    root.setLevel(level)
    root.handlers[:] = handlers
    for name, before in noisy.items():
        logging.getLogger(name).setLevel(before)


def lines(capsys, *, json_output: bool = False) -> list[str]:
    logs.setup(json_output=json_output, level=logging.INFO)
    log = logging.getLogger("neuron_server.place")
    log.debug("not shown")
    log.info("slot %d is free", 3)
    log.warning("grüße\nzwei")
    return capsys.readouterr().out.splitlines()


def test_a_text_line_has_time_level_target_and_message(capsys):
    first, second, rest = lines(capsys)
    stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"
    assert re.fullmatch(stamp + "  INFO neuron_server.place: slot 3 is free", first)
    assert re.fullmatch(stamp + "  WARN neuron_server.place: grüße", second)
    assert rest == "zwei"


def test_a_json_line_is_one_object_whatever_the_message(capsys):
    first, second = map(json.loads, lines(capsys, json_output=True))
    assert first["level"] == "INFO"
    assert first["message"] == "slot 3 is free"
    assert first["target"] == "neuron_server.place"
    assert set(first) == {"timestamp", "level", "message", "target"}
    assert (second["level"], second["message"]) == ("WARN", "grüße\nzwei")


#: As TGI's router: the line that latency scripts read.
INSIDE = logs.inside(
    (
        ("compat_generate", {}),
        ("generate", {"parameters": logs.Bare('P { stop: ["\\n"] }'), "total_time": "1.5s", "odd": 'a"b'}),
    ),
    "text_generation_router::server",
)


def test_a_line_inside_spans_has_tgi_s_form(capsys):
    logs.setup(level=logging.INFO)
    logging.getLogger("x").info("Success", extra=INSIDE)
    line = capsys.readouterr().out.partition("  INFO ")[2]
    assert re.fullmatch(
        r'compat_generate:generate\{parameters=P \{ stop: \["\\n"\] \} total_time="1\.5s" odd="a\\"b"\}: '
        r"text_generation_router::server: .*:\d+: Success\n",
        line,
    )


def test_a_json_line_inside_spans_has_the_innermost_and_all_of_them(capsys):
    logs.setup(json_output=True, level=logging.INFO)
    logging.getLogger("x").info("Success", extra=INSIDE)
    entry = json.loads(capsys.readouterr().out)
    inner = {"parameters": 'P { stop: ["\\n"] }', "total_time": "1.5s", "odd": 'a"b', "name": "generate"}
    assert entry["span"] == inner
    assert entry["spans"] == [{"name": "compat_generate"}, inner]
    assert (entry["message"], entry["target"]) == ("Success", "text_generation_router::server")
    assert isinstance(entry["line_number"], int)


@pytest.mark.parametrize("json_output", [False, True])
def test_a_traceback_is_part_of_its_record(capsys, json_output):
    logs.setup(json_output=json_output, level=logging.INFO)
    try:
        raise KeyError("what")
    except KeyError:
        logging.getLogger("x").exception("failed")
    out = capsys.readouterr().out
    text = json.loads(out)["message"] if json_output else out
    assert "failed\nTraceback" in text
    assert "KeyError: 'what'" in text


def test_setting_up_twice_does_not_write_twice(capsys):
    logs.setup(level=logging.INFO)
    assert len(lines(capsys)) == 3


@pytest.mark.parametrize(
    ("word", "level"),
    [
        ("info", logging.INFO),
        ("INFO", logging.INFO),
        ("WARN", logging.WARNING),
        ("warning", logging.WARNING),
        ("trace", logging.DEBUG),
        (" debug ", logging.DEBUG),
        ("error", logging.ERROR),
        ("off", logging.CRITICAL),
        ("nonsense", logging.INFO),
        ("", logging.INFO),
    ],
)
def test_a_level_in_either_project_s_spelling(word, level):
    assert logs.parse_level(word) == level


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("debug", logging.DEBUG),
        ("text_generation_router=debug", logging.INFO),
        ("text_generation_router=debug,warn", logging.WARNING),
        ("warn,text_generation_launcher=info", logging.WARNING),
        ("", logging.INFO),
    ],
)
def test_log_level_is_the_first_plain_word_of_the_filter(monkeypatch, text, level):
    monkeypatch.setenv("LOG_LEVEL", text)
    assert logs.level_from_env() == level


@pytest.mark.parametrize(
    ("text", "levels"),
    [
        ("", {}),
        ("info", {}),
        ("text_generation_router=debug,info", {"neuron_server.router": logging.DEBUG}),
        ("text_generation_router::server=warn", {"neuron_server.router.server": logging.WARNING}),
        ("info,text_generation_launcher = error", {"text_generation_launcher": logging.ERROR}),
        ("neuron_server.engine=trace", {"neuron_server.engine": logging.DEBUG}),
    ],
)
def test_log_level_may_name_targets_in_either_project_s_spelling(monkeypatch, text, levels):
    monkeypatch.setenv("LOG_LEVEL", text)
    assert logs.target_levels_from_env() == levels


def test_without_log_level_it_is_info(monkeypatch):
    monkeypatch.delenv("LOG_LEVEL", raising=False)
    assert logs.level_from_env() == logging.INFO


def test_chatty_libraries_are_not_heard_below_warning():
    logs.setup(level=logging.DEBUG)
    assert logging.getLogger("httpx").level == logging.WARNING
    assert logging.getLogger("neuron_server").getEffectiveLevel() == logging.DEBUG
