from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from neuron_server.finished_directory import RECEIPT, filling, read_receipt, sweep, write_receipt

ROOT = Path(__file__).parents[1]


def test_a_directory_appears_when_it_is_complete(tmp_path):
    final = tmp_path / "deep" / "model"
    with filling(final) as directory:
        (directory / "a").write_text("x")
        assert not final.exists()
    assert (final / "a").read_text() == "x"
    assert os.listdir(final.parent) == ["model"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_whatever_goes_wrong_leaves_nothing(tmp_path, error):
    with pytest.raises(error), filling(tmp_path / "model") as directory:  # noqa: PT012
        (directory / "a").write_text("x")
        raise error
    assert os.listdir(tmp_path) == []


def test_what_is_there_is_not_touched(tmp_path):
    (tmp_path / "model").mkdir()
    with filling(tmp_path / "model") as directory:  # empty: as good as absent
        (directory / "a").write_text("mine")
    with pytest.raises(FileExistsError, match="model"), filling(tmp_path / "model"):
        pytest.fail("was let in")
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError), filling(tmp_path / "file"):
        pytest.fail("was let in")


def test_of_two_that_fill_the_first_to_finish_wins(tmp_path):
    with pytest.raises(FileExistsError), filling(tmp_path / "model") as directory:  # noqa: PT012
        (directory / "a").write_text("late")
        (tmp_path / "model").mkdir()
        (tmp_path / "model/a").write_text("early")
    assert (tmp_path / "model/a").read_text() == "early"
    assert os.listdir(tmp_path) == ["model"]


def test_what_a_killed_process_left_is_swept_and_what_a_living_one_fills_is_not(tmp_path):
    text = """
import os, sys, signal
from pathlib import Path
from neuron_server.finished_directory import filling
with filling(Path(sys.argv[1])) as d:
    (d / "a").write_text("x")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", text, str(tmp_path / "model")], cwd=ROOT, timeout=60)
    assert done.returncode == -signal.SIGKILL
    (left,) = os.listdir(tmp_path)
    assert left.startswith(".model.partial-")
    host = left.removeprefix(".model.partial-").rpartition("-")[0]
    alive = f".model.partial-{host}-{os.getpid()}"
    elsewhere, long_ago = ".model.partial-other.host-1", ".model.partial-other.host-2"
    other = f".other.partial-{host}-99999999"
    for name in (alive, elsewhere, long_ago, other, f".model.partial-{host}-none"):
        (tmp_path / name).mkdir()
    os.utime(tmp_path / long_ago, (0, 0))
    sweep(tmp_path / "model")
    assert set(os.listdir(tmp_path)) == {alive, elsewhere, other}
    sweep(tmp_path / "no" / "such")


def test_a_receipt_counts_only_while_every_file_is_whole(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/model.pt").write_bytes(bytes(100))
    write_receipt(tmp_path, {"model_id": "org/model"})
    about = read_receipt(tmp_path)
    assert about is not None
    assert (about["model_id"], about["files"]) == ("org/model", {"sub/model.pt": 100})
    (tmp_path / "sub/model.pt").write_bytes(bytes(99))
    assert read_receipt(tmp_path) is None
    (tmp_path / "sub/model.pt").unlink()
    assert read_receipt(tmp_path) is None


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"files": 1}', b"\xff", b"[" * 100_000])
def test_a_receipt_that_is_none_is_none(tmp_path, content):
    assert read_receipt(tmp_path) is None
    (tmp_path / RECEIPT).write_bytes(content)
    assert read_receipt(tmp_path) is None
