from __future__ import annotations

import os
from pathlib import Path

import pytest
from device import machines

from launcher.device.cores import CoreRange
from launcher.device.inventory import Inventory, inspect
from launcher.device.rooted import machine_root, read
from neuron_server.errors import ConfigError

pytestmark = pytest.mark.group(22)


def test_a_healthy_inf2_xlarge_has_one_device_of_two_cores(tmp_path):
    assert inspect(machines.inf2_xlarge(tmp_path), {}) == Inventory(
        devices=1,
        instance_type="inf2.xlarge",
        cores=CoreRange(0, 2),
        driver="2.24.7.0",
        driver_loaded=True,
        device_numbers=(0,),
    )


def test_an_inf2_48xlarge_has_24_cores(tmp_path):
    inventory = inspect(machines.inf2_48xlarge(tmp_path), {})
    assert (inventory.devices, inventory.cores, inventory.family) == (12, CoreRange(0, 24), "inf2")


def test_the_variables_of_the_runtime_narrow_the_cores(tmp_path):
    machines.inf2_48xlarge(tmp_path)
    assert inspect(tmp_path, {"NEURON_RT_NUM_CORES": "8"}).cores == CoreRange(0, 8)
    assert inspect(tmp_path, {"NEURON_RT_VISIBLE_CORES": "8-15"}).cores == CoreRange(8, 8)


def test_a_wrong_variable_leaves_the_devices_known_and_says_what_is_wrong(tmp_path):
    inventory = inspect(machines.inf2_xlarge(tmp_path), {"NEURON_RT_VISIBLE_CORES": "0-7"})
    assert (inventory.devices, inventory.cores) == (1, None)
    with pytest.raises(ConfigError, match="only 2 cores") as caught:
        inventory.usable_cores()
    assert caught.value.rule == "neuron_cores"


def test_a_machine_without_devices_does_not_look_at_the_variables(tmp_path):
    inventory = inspect(machines.no_device(tmp_path), {"NEURON_RT_VISIBLE_CORES": "nonsense"})
    assert inventory == Inventory(instance_type="m7i.2xlarge")
    with pytest.raises(ConfigError, match=r"no Neuron device .*--backend cpu") as caught:
        inventory.usable_cores()
    assert caught.value.rule == "no_neuron_device"


def test_usable_cores_are_those_seen(tmp_path):
    assert inspect(machines.inf2_xlarge(tmp_path), {}).usable_cores() == CoreRange(0, 2)


def test_a_container_that_does_not_know_its_instance_still_counts_its_devices(tmp_path):
    inventory = inspect(machines.container_without_dmi(tmp_path), {})
    assert (inventory.devices, inventory.instance_type, inventory.cores) == (1, None, CoreRange(0, 2))


def test_a_driver_without_devices_is_a_container_that_was_not_given_any(tmp_path):
    inventory = inspect(machines.machine(tmp_path, driver="2.24.7.0"), {})
    assert (inventory.devices, inventory.driver) == (0, "2.24.7.0")
    assert "--device=/dev/neuron0" in inventory.no_device()


def test_device_files_without_a_driver_are_stale(tmp_path):
    inventory = inspect(machines.machine(tmp_path, devices=2), {})
    assert (inventory.devices, inventory.stale_nodes, inventory.cores) == (0, 2, None)
    assert "modprobe neuron" in inventory.no_device()


def test_names_count_where_the_kernel_does_not_list_its_drivers(tmp_path):
    for name in ("neuron0", "neuron11", "neuron", "neuron_x", "neuron1x", "xneuron1", "null"):
        machines.write(tmp_path, f"dev/{name}", "")
    assert inspect(tmp_path, {}).devices == 2


def test_of_real_device_nodes_those_of_the_drivers_major_count(tmp_path):
    """/dev/null is a character device that every machine has; here its major is called neuron."""
    major = os.major(os.stat("/dev/null").st_rdev)
    machines.write(tmp_path, "proc/devices", f"Character devices:\n{major} neuron\n 5 neuron_other\n")
    (tmp_path / "dev").mkdir()
    for name, target in (("neuron0", "/dev/null"), ("neuron1", "/dev/zero"), ("neuron2", "/dev/missing")):
        os.symlink(target, tmp_path / "dev" / name)
    assert inspect(tmp_path, {}).devices == 2
    machines.write(tmp_path, "proc/devices", f"Character devices:\n{major + 200} neuron\n")
    assert inspect(tmp_path, {}).devices == 0


def test_another_driver_with_a_similar_name_is_not_ours(tmp_path):
    machines.machine(tmp_path, devices=1)
    machines.write(tmp_path, "proc/devices", "Character devices:\n246 neuron_v2\n247 myneuron\nneuron\n")
    assert inspect(tmp_path, {}).devices == 0


def test_devices_keep_the_numbers_that_the_host_gave_them(tmp_path):
    root = machines.machine(tmp_path, driver="2.24.7.0")
    for number in (10, 3):
        machines.write(root, f"dev/neuron{number}", "")
    inventory = inspect(root, {})
    assert (inventory.device_numbers, inventory.cores) == ((3, 10), CoreRange(0, 4))


def test_a_directory_named_like_a_device_is_none(tmp_path):
    machines.inf2_xlarge(tmp_path)
    (tmp_path / "dev/neuron1").mkdir()
    assert inspect(tmp_path, {}).devices == 1


@pytest.mark.parametrize(
    "version", ["", "\n", "2", "unknown", "v2.1", "2.24 7", "2.24\x00.7", "9" * 500_000, "2.24.7.0\nmore"]
)
def test_a_version_file_that_holds_no_version_is_unknown(tmp_path, version):
    machines.inf2_xlarge(tmp_path)
    machines.write(tmp_path, "sys/module/neuron/version", version)
    inventory = inspect(tmp_path, {})
    assert (inventory.driver, inventory.devices) == (None, 1)


def test_a_driver_version_with_a_suffix_is_kept_as_it_is_written(tmp_path):
    machines.inf2_xlarge(tmp_path)
    machines.write(tmp_path, "sys/module/neuron/version", "2.24.7.0-dirty\n")
    assert inspect(tmp_path, {}).driver == "2.24.7.0-dirty"


@pytest.mark.parametrize(
    "name", ["", "Standard PC (i440FX + PIIX, 1996)", "HVM domU", "\udcff\udcfe", "x" * 99]
)
def test_a_product_name_that_is_no_instance_type_is_unknown(tmp_path, name):
    machines.inf2_xlarge(tmp_path)
    path = tmp_path / "sys/devices/virtual/dmi/id/product_name"
    path.write_bytes(name.encode(errors="surrogateescape"))
    assert inspect(tmp_path, {}).instance_type is None


def test_trainium2_has_four_cores_for_each_device(tmp_path):
    root = machines.machine(tmp_path, devices=16, instance="trn2.48xlarge", driver="2.24.7.0")
    assert inspect(root, {}).cores == CoreRange(0, 64)


def test_an_empty_directory_and_files_where_directories_should_be_are_no_machine(tmp_path):
    assert inspect(tmp_path, {}) == Inventory()
    for name in ("dev", "proc", "sys"):
        (tmp_path / name).write_bytes(b"\xff\x00")
    assert inspect(tmp_path, {}) == Inventory()


def test_this_machine_can_be_inspected():
    assert inspect(Path("/"), {}).devices >= 0


def test_the_root_of_the_machine_is_an_environment_variable(tmp_path):
    assert machine_root({}) == machine_root({"NEURON_TGI_ROOT": ""}) == Path("/")
    assert machine_root({"NEURON_TGI_ROOT": str(tmp_path)}) == tmp_path
    for wrong in (tmp_path / "missing", machines.write(tmp_path, "file", "")):
        with pytest.raises(ConfigError, match="NEURON_TGI_ROOT is"):
            machine_root({"NEURON_TGI_ROOT": str(wrong)})


def test_a_file_that_is_not_there_reads_as_nothing(tmp_path):
    assert read(tmp_path, "/proc/nothing") == ""
    (tmp_path / "directory").mkdir()
    assert read(tmp_path, "/directory") == ""
