"""One file from a hub that breaks off, is slow, or is short of answers."""

from __future__ import annotations

import errno
import hashlib
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from backends.fake_hub import Hub, serving
from backends.test_checkpoint import CONFIG, point_at, refused
from huggingface_hub import constants, file_download

from neuron_server import download_weights
from neuron_server.backends import checkpoint, download
from neuron_server.backends.checkpoint import find
from neuron_server.backends.download import Progress

WEIGHTS = bytes(range(256)) * 40


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub({"org/model": {**CONFIG, "model.safetensors": WEIGHTS}})
    monkeypatch.setattr(download, "RETRY_S", 0.0)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 500)  # whole ones of a broken answer are kept
    with serving(hub) as endpoint:
        point_at(endpoint, tmp_path, monkeypatch)
        yield hub


def weights_of(path: Path) -> bytes:
    return (path / "model.safetensors").read_bytes()


def test_a_connection_that_breaks_goes_on_where_it_stopped(
    hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    hub.cuts += [1000, 3000]
    assert weights_of(find("org/model").path) == WEIGHTS
    assert hub.ranges == ["bytes=1000-", "bytes=4000-"]
    assert "model.safetensors was interrupted after 0.0 MB" in caplog.text


def test_a_connection_that_brings_nothing_ends_after_some_attempts_and_the_next_start_resumes(
    hub: Hub,
) -> None:
    hub.cuts += [2000] + [0] * 20
    error = refused(lambda: find("org/model"))
    assert error.rule == "download_failed"
    assert "starting again resumes it" in str(error)
    assert len(hub.cuts) == 21 - download.ATTEMPTS
    hub.cuts.clear()
    hub.ranges.clear()
    assert weights_of(find("org/model").path) == WEIGHTS
    assert hub.ranges == ["bytes=2000-"]


def test_a_hub_that_does_not_tell_sizes_and_tags_is_enough(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*_: object, **__: object) -> None:
        raise TimeoutError

    path = find("org/model", config_only=True).path
    monkeypatch.setattr(checkpoint.HfApi, "model_info", silent)
    checkpoint._fetch_files("org/model", path.name, path, [checkpoint.SINGLE], {})
    assert weights_of(path) == WEIGHTS
    assert checkpoint._ask_about("org/model", path.name).pipeline_tag is None


def test_a_full_disk_is_named_with_the_way_out(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    find("org/model", config_only=True)
    monkeypatch.setattr(file_download, "http_get", full)
    error = refused(lambda: find("org/model"))
    assert "No space left" in str(error)
    assert "--huggingface-hub-cache" in str(error)


@pytest.mark.parametrize(
    "error", [RuntimeError("the compiled client failed"), file_download.FileMetadataError("?")]
)
def test_what_the_client_raises_besides_is_no_traceback(
    hub: Hub, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(checkpoint, "download_file", broken)
    assert refused(lambda: find("org/model")).rule == "download_failed"


def test_progress_is_said_in_shares_while_a_file_grows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    growing = tmp_path / (hashlib.sha256(WEIGHTS).hexdigest() + ".incomplete")
    growing.write_bytes(b"")
    (tmp_path / "done").write_bytes(WEIGHTS)
    heard = Heard(2)
    logging.getLogger(download.__name__).addHandler(heard)
    try:
        with Progress("model.safetensors", tmp_path, 4_000_000, interval_s=0.01):
            while not heard.enough.wait(0.005):
                with growing.open("ab") as file:
                    file.write(b"x" * 50_000)
    finally:
        logging.getLogger(download.__name__).removeHandler(heard)
    assert " of 4.0 MB (" in heard.lines[0] or "nothing arrived" in heard.lines[0]
    assert any(line.startswith("Downloading model.safetensors: ") for line in heard.lines)


def test_a_file_that_does_not_grow_is_said_too(tmp_path: Path) -> None:
    heard = Heard(1)
    logger = logging.getLogger(download.__name__)
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(heard)
    try:
        with Progress("model.safetensors", tmp_path, None, interval_s=0.01):
            assert heard.enough.wait(10)
    finally:
        logger.removeHandler(heard)
        logger.setLevel(level)
    assert "nothing arrived" in heard.lines[0]


def test_ctrl_c_is_no_traceback(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "find", interrupted)
    monkeypatch.setattr(download_weights.logs, "setup", lambda **_: None)
    assert download_weights.main(["org/model"]) == 130
    assert "kept" in capsys.readouterr().err


class Heard(logging.Handler):
    """Collects lines; ``enough`` is set at the ``count``-th."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.enough = threading.Event()
        self._count = count

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        if len(self.lines) >= self._count:
            self.enough.set()
