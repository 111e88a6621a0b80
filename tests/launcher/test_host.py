from __future__ import annotations

import os
import socket
from pathlib import Path

from device import machines

from launcher.device.cores import CoreRange
from launcher.host import inspect, port_holder


def write(root: Path, **files: str) -> None:
    """Files named with ``__`` for a slash."""
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("DOT", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_the_memory_of_the_kernel_counts_without_a_container(tmp_path):
    write(tmp_path, proc__meminfo="MemTotal:  100 kB\nMemAvailable:      50 kB\n")
    assert inspect(tmp_path).available_bytes == 50 * 1024


def test_the_limit_of_the_container_counts_when_it_is_smaller(tmp_path):
    write(
        tmp_path,
        proc__meminfo="MemAvailable:  1000 kB\n",
        sys__fs__cgroup__memoryDOTmax="20000\n",
        sys__fs__cgroup__memoryDOTcurrent="15000\n",
        sys__fs__cgroup__memoryDOTstat="anon 1\ninactive_file 4000\n",
    )
    assert inspect(tmp_path).available_bytes == 9000


def test_an_unlimited_container_limits_nothing(tmp_path):
    write(
        tmp_path,
        proc__meminfo="MemAvailable:  1000 kB\n",
        sys__fs__cgroup__memoryDOTmax="max\n",
        sys__fs__cgroup__memoryDOTcurrent="15000\n",
    )
    assert inspect(tmp_path).available_bytes == 1000 * 1024


def test_an_older_cgroup_is_read_too(tmp_path):
    write(
        tmp_path,
        sys__fs__cgroup__memory__memoryDOTlimit_in_bytes="20000\n",
        sys__fs__cgroup__memory__memoryDOTusage_in_bytes="30000\n",
    )
    assert inspect(tmp_path).available_bytes == 0


def test_a_machine_that_tells_nothing_is_unknown(tmp_path):
    host = inspect(tmp_path)
    assert (host.available_bytes, host.neuron_devices) == (None, 0)


def test_neuron_devices_are_counted_by_name(tmp_path):
    write(tmp_path, dev__neuron0="", dev__neuron11="", dev__neuron="", dev__neuron_x="", dev__null="")
    assert inspect(tmp_path).neuron_devices == 2


def test_the_neuron_hardware_of_the_machine_is_part_of_it(tmp_path):
    host = inspect(machines.inf2_xlarge(tmp_path), {"NEURON_RT_NUM_CORES": "1"})
    assert (host.neuron_devices, host.inventory.cores) == (1, CoreRange(0, 1))
    assert host.available_bytes == 14 * 2**30


def test_processors_are_those_of_the_kernel_as_far_as_the_container_may_use_them(tmp_path):
    assert inspect(tmp_path).processors is None
    write(tmp_path, proc__cpuinfo="processor\t: 0\nmodel name : x\n\nprocessor\t: 1\n\nprocessor\t: 2\n")
    assert inspect(tmp_path).processors == 3
    for share, processors in (("max 100000", 3), ("150000 100000", 2), ("100 100000", 1), ("9 0", 3)):
        write(tmp_path, sys__fs__cgroup__cpuDOTmax=f"{share}\n")
        assert inspect(tmp_path).processors == processors
    assert 1 <= (inspect().processors or 0) <= len(os.sched_getaffinity(0))


def test_the_holder_of_a_port_is_named():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert port_holder(port) == f"process {os.getpid()} ({Path('/proc/self/comm').read_text().strip()})"
    assert port_holder(port) is None
