from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
from device import machines

from launcher.doctor import neuron

sys.path.insert(0, str(Path(__file__).parent))
from examined import lines


def test_all_that_have_one_device_open_are_to_be_stopped_and_only_some_described(tmp_path):
    """A server that forked: which of them reserved the cores cannot be seen."""
    root = machines.inf2_xlarge(tmp_path)
    for pid in range(11, 17):
        machines.process(root, pid, f"worker{pid}", opens=["/dev/neuron0"])
    (line,) = lines(neuron.cores, root)
    assert "process 11 (worker11) has /dev/neuron0 open; process 12" in line
    assert "; and 2 more; what a process reserved" in line
    assert "(kill 11 12 13 14 15 16)" in line


def test_a_healthy_machine_is_all_well(tmp_path):
    machines.inf2_xlarge(tmp_path)
    for check in (neuron.devices, neuron.instance, neuron.driver_and_runtime, neuron.packages):
        assert [line[:4] for line in lines(check, tmp_path)] == ["ok  "]
    assert lines(neuron.cores, tmp_path) == [
        "ok    cores: 0-1 of 2 can be used, and no process that can be seen holds one"
    ]


def test_many_devices_are_not_all_listed(tmp_path):
    (line,) = lines(neuron.devices, machines.inf2_48xlarge(tmp_path))
    assert (
        line
        == "ok    devices: 12 Neuron device(s) with 24 cores: /dev/neuron0, /dev/neuron1, /dev/neuron2, ..."
    )


def test_no_device_is_a_failure_only_for_who_asked_for_one(tmp_path):
    machines.no_device(tmp_path)
    assert lines(neuron.devices, tmp_path) == [
        "ok    devices: no Neuron device: models are served on the CPU"
    ]
    for backend in ("neuron", "neuron_legacy"):
        (line,) = lines(neuron.devices, tmp_path, backend=backend)
        assert line.startswith("FAIL  devices: no Neuron device can be seen from here -> use an inf2")
        (line,) = lines(neuron.driver_and_runtime, tmp_path, backend=backend)
        assert line.startswith(
            "FAIL  driver: neither a driver nor a runtime library -> install aws-neuronx-dkms"
        )
        (line,) = lines(neuron.packages, tmp_path, backend=backend)
        assert line.startswith("FAIL  packages: optimum-neuron is not installed")


def test_a_machine_that_should_have_devices_and_shows_none_warns(tmp_path):
    (line,) = lines(neuron.devices, machines.machine(tmp_path, instance="inf2.xlarge"))
    assert line.startswith(
        "warn  devices: no Neuron device can be seen from here, so models are served on the CPU"
    )


def test_a_container_without_its_devices_says_how_to_give_them(tmp_path):
    (line,) = lines(neuron.devices, machines.machine(tmp_path, driver="2.24.7.0"))
    assert line.startswith("warn  devices: the host has the neuron driver, but")
    assert "--device=/dev/neuron0" in line


def test_device_files_without_a_driver_say_how_to_load_it(tmp_path):
    (line,) = lines(neuron.devices, machines.machine(tmp_path, devices=1))
    assert "-> install and load it on the host" in line


def test_fewer_devices_than_the_instance_has_warn(tmp_path):
    root = machines.machine(tmp_path, devices=2, instance="inf2.48xlarge", driver="2.24.7.0")
    (line,) = lines(neuron.instance, root)
    assert line.startswith("warn  instance: inf2.48xlarge has 12 device(s), of which 2 can be seen")


@pytest.mark.parametrize(
    ("instance", "devices", "says"),
    [
        (None, 0, "ok    instance: unknown"),
        (None, 1, "Inferentia2 is assumed"),
        ("m7i.2xlarge", 0, "ok    instance: m7i.2xlarge, not one with Neuron devices"),
        ("inf1.xlarge", 1, "FAIL  instance: inf1.xlarge, whose family"),
        ("trn1.2xlarge", 1, "ok    instance: trn1.2xlarge"),
    ],
)
def test_other_instances(tmp_path, instance, devices, says):
    root = machines.machine(tmp_path, devices=devices, instance=instance, driver="2.24.7.0")
    (line,) = lines(neuron.instance, root)
    assert says in line


def test_a_driver_that_is_too_new_fails_with_the_one_to_install(tmp_path):
    machines.driver_too_new(tmp_path)
    (line,) = lines(neuron.driver_and_runtime, tmp_path)
    assert line.startswith(
        "FAIL  driver: the host's Neuron driver is 2.29.1.0 and the runtime library here is 2.28.23.0"
    )
    assert "aws-neuronx-dkms=2.24.7.0" in line.partition(" -> ")[2]
    (line,) = lines(neuron.driver_and_runtime, tmp_path, backend="cpu")
    assert line.startswith("warn  driver:")


def test_an_older_driver_is_a_doubt(tmp_path):
    root = machines.machine(tmp_path, devices=1, driver="2.22.2.0", runtime="2.28.23.0")
    (line,) = lines(neuron.driver_and_runtime, root)
    assert line.startswith("warn  driver: the host's Neuron driver is 2.22.2.0, older than 2.24.7.0")


def test_a_driver_of_unknown_version_warns(tmp_path):
    machines.inf2_xlarge(tmp_path)
    machines.write(tmp_path, "sys/module/neuron/version", "garbage\n")
    (line,) = lines(neuron.driver_and_runtime, tmp_path)
    assert line.startswith("warn  driver: the version of the driver is unknown (runtime library 2.28.23.0)")


def test_a_device_without_the_runtime_library_fails(tmp_path):
    (line,) = lines(neuron.driver_and_runtime, machines.machine(tmp_path, devices=1, driver="2.24.7.0"))
    assert line.startswith("FAIL  driver: the driver is 2.24.7.0, but there is no runtime library")


def test_an_image_on_a_laptop_has_a_runtime_and_no_driver(tmp_path):
    root = machines.machine(tmp_path, runtime=machines.RUNTIME, packages=machines.PACKAGES)
    assert lines(neuron.driver_and_runtime, root) == [
        "ok    driver: runtime 2.28.23.0, but no driver; the CPU needs none"
    ]


def test_placeholders_are_called_what_they_are(tmp_path):
    root = machines.machine(
        tmp_path, devices=1, driver="2.24.7.0", packages={**machines.PACKAGES, "neuronx-cc": "1.0.post1"}
    )
    placeholder, missing = lines(neuron.packages, root)
    assert placeholder.startswith("FAIL  packages: neuronx-cc 1.0.post1: placeholders of PyPI")
    assert missing.startswith(
        "FAIL  packages: neuronx-cc is not installed, but optimum-neuron 0.4.5 was made for 2.21"
    )
    assert all(line.startswith("warn") for line in lines(neuron.packages, root, backend="cpu"))


def test_packages_of_another_sdk_fail_and_of_another_build_warn(tmp_path):
    packages = {**machines.PACKAGES, "neuronx-cc": "2.23.6484.0", "torch-neuronx": "2.8.0.2.10.13553"}
    root = machines.machine(tmp_path, devices=1, driver="2.24.7.0", packages=packages)
    compiler, torch = lines(neuron.packages, root)
    assert compiler.startswith("FAIL  packages: neuronx-cc is 2.23.6484.0")
    assert torch.startswith("warn  packages: torch-neuronx is 2.8.0.2.10.13553")


def test_a_release_that_nobody_knows_warns(tmp_path):
    root = machines.machine(tmp_path, packages={"optimum-neuron": "7.0"})
    (line,) = lines(neuron.packages, root)
    assert line.startswith("warn  packages: optimum-neuron 7.0 is none of the releases")


def test_held_cores_fail_and_name_the_process(tmp_path):
    (line,) = lines(neuron.cores, machines.cores_held(tmp_path))
    assert line.startswith(
        "FAIL  cores: 0 of the cores 0-1 are free: process 4242 (python3) has /dev/neuron0 open"
    )
    assert "kill 4242" in line


def test_cores_held_by_a_process_that_says_which_leave_the_others(tmp_path):
    root = machines.inf2_48xlarge(tmp_path)
    opens = [f"/dev/neuron{n}" for n in range(12)]
    machines.process(root, 50, "tgi", opens=opens, environ={"NEURON_RT_VISIBLE_CORES": "0-15"})
    assert lines(neuron.cores, root, num_shard=8)[0].startswith("warn  cores: 8 of the cores 0-23 are free")
    assert lines(neuron.cores, root, num_shard=8, data_parallel_size=2)[0].startswith("FAIL")
    ours = {"NEURON_RT_VISIBLE_CORES": "16-23"}
    assert lines(neuron.cores, root, ours)[0].startswith("ok    cores: 16-23 of 24 can be used")


def test_a_container_admits_what_it_cannot_see(tmp_path):
    (line,) = lines(neuron.cores, machines.container_without_dmi(tmp_path))
    assert line.endswith(
        "(processes of other containers and of the host are not visible from this container)"
    )


def test_a_machine_without_devices_has_no_cores_to_speak_of(tmp_path):
    assert lines(neuron.cores, machines.no_device(tmp_path)) == []


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"NEURON_RT_VISIBLE_CORES": "3-1"}, "FAIL  variables: NEURON_RT_VISIBLE_CORES is '3-1'"),
        ({"NEURON_RT_VISIBLE_CORES": ""}, "unset it to use all"),
        ({"NEURON_RT_NUM_CORES": "two"}, "FAIL  variables: NEURON_RT_NUM_CORES is 'two'"),
        ({"NEURON_RT_EXEC_TIMEOUT": "0"}, "warn  variables: NEURON_RT_EXEC_TIMEOUT is '0'"),
        ({"NEURON_RT_LOG_LEVEL": "loud"}, "warn  variables: NEURON_RT_LOG_LEVEL is 'loud'"),
        ({"NEURON_RT_VISIBLE_CORES": "0", "NEURON_RT_NUM_CORES": "1"}, "the first wins"),
        ({"NEURON_RT_LOG_LEVEL": "INFO"}, "ok    variables: NEURON_RT_LOG_LEVEL set"),
    ],
)
def test_each_variable_has_its_rule(tmp_path, environ, says):
    machines.inf2_xlarge(tmp_path)
    (line,) = lines(neuron.variables, tmp_path, environ)
    assert says in line


def test_a_wrong_variable_harms_nobody_on_the_cpu(tmp_path):
    (line,) = lines(neuron.variables, machines.no_device(tmp_path), {"NEURON_RT_VISIBLE_CORES": "3-1"})
    assert line.startswith("warn")


def test_visible_cores_that_are_not_there_are_the_cores_failure(tmp_path):
    machines.inf2_xlarge(tmp_path)
    (line,) = lines(neuron.cores, tmp_path, {"NEURON_RT_VISIBLE_CORES": "4-7"})
    assert line == (
        "FAIL  cores: NEURON_RT_VISIBLE_CORES is '4-7', but only 2 cores can be seen from here -> "
        "name some of 0-1"
    )


def test_every_finding_of_a_check_carries_its_name(tmp_path):
    from examined import case

    subject = dataclasses.replace(case(machines.driver_too_new(tmp_path)))
    assert {f.check for f in neuron.driver_and_runtime(subject)} == {"driver"}
