from __future__ import annotations

import socket
from pathlib import Path

import pytest

from neuron_server.errors import ConfigError
from neuron_server.socket_path import LONGEST_BYTES, check_length, clear_stale


def refused(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        clear_stale(str(path), "--shard-uds-path")
    assert caught.value.rule == "socket"
    assert "--shard-uds-path" in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_stale_socket_is_removed(tmp_path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "s"))
    clear_stale(str(tmp_path / "s"), "--shard-uds-path")
    assert not (tmp_path / "s").exists()


def test_nothing_there_is_fine(tmp_path):
    clear_stale(str(tmp_path / "s"), "--shard-uds-path")


def test_a_socket_that_answers_is_somebody_elses(tmp_path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        server.listen(0)
        assert "another server answers" in refused(tmp_path / "s")
        assert (tmp_path / "s").exists()


def test_a_socket_whose_queue_is_full_is_somebody_elses(tmp_path):
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(str(tmp_path / "s"))
        server.listen(0)
        client.connect(str(tmp_path / "s"))
        assert "another server answers" in refused(tmp_path / "s")


def test_a_file_or_a_link_is_never_removed(tmp_path):
    (tmp_path / "file").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for name in ("file", "link"):
        assert "not a socket" in refused(tmp_path / name)
    assert (tmp_path / "file").read_text() == "precious"


def test_a_directory_that_does_not_exist_is_said(tmp_path):
    assert "directory does not exist" in refused(tmp_path / "no" / "s")


def test_a_path_too_long_for_a_socket_is_refused_with_both_numbers():
    check_length("/" + "x" * (LONGEST_BYTES - 1), "--uds-path")
    with pytest.raises(
        ConfigError, match=rf"--uds-path .* has 120 bytes; .* at most {LONGEST_BYTES}"
    ) as caught:
        check_length("/" + "x" * 119, "--uds-path")
    assert caught.value.rule == "socket"
