from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest
from planning import planned

from launcher.sockets import free_port, private_directory_name, socket_places
from neuron_server.errors import ConfigError


def stale(path: Path) -> None:
    """A socket file whose process is gone."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def test_the_private_directory_is_private_and_gone_at_the_end(tmp_path):
    directory = tmp_path / "private"
    with socket_places(planned(directory=str(directory))):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        stale(directory / "shard-0")
    assert not directory.exists()


def test_the_private_directory_is_gone_after_a_failure_too(tmp_path):
    directory = tmp_path / "private"
    with pytest.raises(ValueError, match="on purpose"), socket_places(planned(directory=str(directory))):
        raise ValueError("on purpose")
    assert not directory.exists()


def test_a_temporary_directory_that_cannot_be_written_names_the_way_out(tmp_path):
    with (
        pytest.raises(ConfigError, match=r"TMPDIR.*--shard-uds-path") as caught,
        socket_places(planned(directory=str(tmp_path / "no" / "private"))),
    ):
        pass
    assert caught.value.rule == "socket"


@pytest.mark.case(192)
def test_a_placed_socket_is_cleared_before_and_removed_after(tmp_path):
    stale(tmp_path / "s-0")
    plan = planned(shard_uds_path=str(tmp_path / "s"))
    with socket_places(plan):
        assert not (tmp_path / "s-0").exists()
        stale(tmp_path / "s-0")
    assert not (tmp_path / "s-0").exists()
    assert tmp_path.exists()


def test_the_private_name_is_new_each_time_and_short():
    first, second = private_directory_name(), private_directory_name()
    assert first != second
    assert len(first) < 80
    assert not os.path.exists(first)


def test_a_long_temporary_directory_is_not_used(monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", "/" + "a" * 100)
    assert private_directory_name().startswith("/tmp/")


# -- the port ------------------------------------------------------------------------------------------------


def test_a_free_port_stays_and_0_becomes_one():
    port = free_port("127.0.0.1", 0, "--port is 0 (flag)")
    assert port > 0
    assert free_port("127.0.0.1", port, f"--port is {port} (flag)") == port


@pytest.mark.parametrize("ours", ["127.0.0.1", "0.0.0.0"])
def test_a_taken_port_names_flag_value_holder_and_what_to_do(ours):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ConfigError) as caught:
            free_port(ours, port, f"--port is {port} (default)")
    assert caught.value.rule == "port_in_use"
    text = str(caught.value)
    assert text.startswith(f"--port is {port} (default), but process {os.getpid()} (")
    assert "stop it, or choose another --port" in text


def test_an_address_of_another_machine_is_refused():
    with pytest.raises(ConfigError, match=r"--hostname is 192\.0\.2\.1") as caught:
        free_port("192.0.2.1", 0, "--port is 0 (flag)")
    assert caught.value.rule == "address"
