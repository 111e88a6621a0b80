from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from device import machines

from launcher.device.cores import CoreRange
from launcher.device.holders import Holder, Holders, holders


def test_nobody_holds_the_devices_of_a_healthy_machine(tmp_path):
    seen = holders(machines.inf2_xlarge(tmp_path))
    assert seen == Holders(whole_machine=True)
    assert seen.blind_spots is None


def test_a_process_with_a_device_open_is_named(tmp_path):
    seen = holders(machines.cores_held(tmp_path))
    assert seen.processes == (Holder(4242, "python3", (0,)),)
    assert str(seen.processes[0]) == "process 4242 (python3) has /dev/neuron0 open"


def test_the_cores_it_was_started_with_are_known(tmp_path):
    root = machines.inf2_48xlarge(tmp_path)
    opens = [f"/dev/neuron{n}" for n in range(12)]
    machines.process(root, 77, "tgi", opens=opens, environ={"A": "1", "NEURON_RT_VISIBLE_CORES": "0-7"})
    (holder,) = holders(root).processes
    assert holder.visible == CoreRange(0, 8)
    assert holder.cores(range(12)) == set(range(8))
    assert str(holder).endswith("started with NEURON_RT_VISIBLE_CORES=0-7")


@pytest.mark.parametrize("value", ["", "nonsense", "7-0"])
def test_a_variable_that_means_nothing_means_all_of_its_devices(tmp_path, value):
    root = machines.inf2_xlarge(tmp_path)
    machines.process(root, 7, "x", opens=["/dev/neuron0"], environ={"NEURON_RT_VISIBLE_CORES": value})
    (holder,) = holders(root).processes
    assert holder.cores((0,)) == {0, 1}


def test_cores_are_counted_over_the_devices_that_we_see():
    holder = Holder(1, "x", (3, 10))
    assert holder.cores((3, 10)) == {0, 1, 2, 3}
    assert holder.cores((9, 10)) == {2, 3}
    assert holder.cores((0, 1)) == frozenset()
    assert holder.cores((10,), cores_per_device=4) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    "target",
    ["/dev/neuron", "/dev/neuron0x", "/tmp/dev/neuron0", "socket:[1]", "/dev/neuron0 (deleted)", "x" * 3000],
)
def test_other_files_are_not_devices(tmp_path, target):
    root = machines.inf2_xlarge(tmp_path)
    machines.process(root, 7, "x", opens=[target])
    assert holders(root).processes == ()


def test_a_container_says_that_it_does_not_see_everything(tmp_path):
    seen = holders(machines.container_without_dmi(tmp_path))
    assert seen.whole_machine is False
    assert "other containers and of the host are not visible" in (seen.blind_spots or "")


def test_where_even_that_is_unknown_it_says_so(tmp_path):
    assert holders(tmp_path) == Holders()
    assert "may not be visible" in (Holders().blind_spots or "")


def test_a_process_that_is_closed_to_us_is_counted_as_unknown(tmp_path, monkeypatch):
    """Its files are listed but cannot be read, as for another user's; root cannot be refused for real."""
    root = machines.cores_held(tmp_path)
    real = os.readlink

    def refused(path):
        if "/proc/4242/" in str(path):
            raise PermissionError
        return real(path)

    monkeypatch.setattr(os, "readlink", refused)
    seen = holders(root)
    assert (seen.processes, seen.closed) == ((), 1)
    assert "1 processes of other users are closed to us (unknown" in (seen.blind_spots or "")


def test_a_process_that_ends_while_we_look_is_nobody(tmp_path):
    root = machines.cores_held(tmp_path)
    machines.write(root, "proc/99/comm", "gone")
    machines.write(root, "proc/98", "a file")
    assert [h.pid for h in holders(root).processes] == [4242]


def test_a_name_that_would_break_the_line_is_cleaned(tmp_path):
    root = machines.inf2_xlarge(tmp_path)
    machines.process(root, 7, "a\nb\x1b[31m", opens=["/dev/neuron0"])
    (holder,) = holders(root).processes
    assert holder.name == "ab[31m"


def test_a_real_process_is_seen_in_the_real_proc(tmp_path, monkeypatch):
    """Another process has a file open whose path looks like a device to us."""
    held = tmp_path / "neuron5"
    held.write_text("")
    monkeypatch.setattr("launcher.device.holders._NODE", re.compile(rf"{tmp_path}/neuron(\d+)"))
    code = f"f = open({str(held)!r}); print('open', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "NEURON_RT_VISIBLE_CORES": "10-11"},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        seen = [h for h in holders(Path("/")).processes if h.pid == process.pid]
        process.communicate("\n")
    assert [(h.devices, h.visible) for h in seen] == [((5,), CoreRange(10, 2))]
