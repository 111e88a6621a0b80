from __future__ import annotations

import os
from pathlib import Path

import pytest
from device import machines

from launcher.device.stack import Stack, installed, runtime_version

LIBRARIES = "opt/aws/neuron/lib"


def test_the_packages_of_an_image_are_read_from_their_metadata(tmp_path):
    assert installed(machines.inf2_xlarge(tmp_path)) == Stack(
        optimum_neuron="0.4.5",
        compiler="2.21.33363.0",
        torch_neuronx="2.8.0.2.10.16998",
        runtime="2.28.23.0",
        neuronx_distributed="0.15.22404",
        libneuronxla="2.2.12677.0",
        torch="2.8.0",
        transformers="4.57.6",
    )


def test_a_machine_without_neuron_has_no_stack(tmp_path):
    stack = installed(machines.no_device(tmp_path))
    assert stack == Stack()
    assert not stack.has_neuron


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("neuronx-cc", "1.0.post1"),
        ("torch-neuronx", "1.0"),
        ("libneuronxla", "1.0"),
        ("transformers-neuronx", "0.1"),
        ("neuronx-distributed", "0.1"),
        ("neuronx-distributed-inference", "0.1.0"),
        ("vllm-neuron", "0.1.0"),
    ],
)
def test_the_placeholders_of_pypi_count_as_not_installed(tmp_path, name, version):
    machines.package(tmp_path, name, version)
    stack = installed(tmp_path)
    assert stack == Stack(placeholders=(f"{name} {version}",))
    assert stack.has_neuron


def test_a_package_that_is_no_placeholder_is_not_called_one(tmp_path):
    machines.package(tmp_path, "neuronx-distributed", "0.15.22404")
    machines.package(tmp_path, "optimum-neuron", "1.0")
    assert installed(tmp_path) == Stack(optimum_neuron="1.0", neuronx_distributed="0.15.22404")


@pytest.mark.parametrize(
    "text", [b"", b"Name: neuronx-cc\n", b"\xff\xfe\x00\x00", b"Version:\n", b"\x00" * 10_000]
)
def test_broken_metadata_is_no_package(tmp_path, text):
    machines.package(tmp_path, "neuronx-cc", "2.21.33363.0")
    (metadata,) = tmp_path.rglob("METADATA")
    metadata.write_bytes(text)
    assert installed(tmp_path).compiler is None


def test_metadata_that_is_a_directory_or_gone_is_no_package(tmp_path):
    machines.package(tmp_path, "neuronx-cc", "2.21.33363.0")
    (metadata,) = tmp_path.rglob("METADATA")
    metadata.unlink()
    assert installed(tmp_path).compiler is None
    metadata.mkdir()
    assert installed(tmp_path).compiler is None


def test_this_interpreter_is_read_for_this_machine():
    assert installed(Path("/")).transformers is not None
    assert installed().torch is not None


def test_the_environment_of_the_generator_is_the_one_that_counts(tmp_path):
    """The image has the launcher in one environment and AWS's packages in another."""
    machines.package(tmp_path, "torch", "2.13.0")
    theirs = {"NEURON_TGI_GENERATOR_PYTHON": "/opt/neuron/bin/python"}
    assert installed(tmp_path, theirs).torch is None
    machines.package(tmp_path, "torch", "2.8.0", site_packages="opt/neuron/lib/python3.10/site-packages")
    assert installed(tmp_path, theirs).torch == "2.8.0"
    on_this_machine = {"NEURON_TGI_GENERATOR_PYTHON": str(tmp_path / "opt/neuron/bin/python")}
    assert installed(Path("/"), on_this_machine).torch == "2.8.0"


@pytest.mark.parametrize("python", ["python", "/python", "bin/python", ".", "/", "/no/such/python", "*/*/*"])
def test_a_generator_that_is_nowhere_has_nothing(tmp_path, python):
    for root in (tmp_path, Path("/")):
        assert installed(root, {"NEURON_TGI_GENERATOR_PYTHON": python}).transformers is None


def test_the_runtime_is_the_library_that_the_link_names(tmp_path):
    for version in ("2.26.42.0", "2.28.23.0", "2.9.1"):
        machines.write(tmp_path, f"{LIBRARIES}/libnrt.so.{version}", "")
    machines.write(tmp_path, f"{LIBRARIES}/libnrt_other.so.9.9.9", "")
    assert runtime_version(tmp_path) == "2.28.23.0"
    os.symlink("libnrt.so.2.26.42.0", tmp_path / LIBRARIES / "libnrt.so.1")
    os.symlink("libnrt.so.1", tmp_path / LIBRARIES / "libnrt.so")
    assert runtime_version(tmp_path) == "2.26.42.0"


def test_dpkg_knows_the_runtime_where_the_file_does_not_say(tmp_path):
    machines.write(tmp_path, f"{LIBRARIES}/libnrt.so.1", "")
    machines.dpkg(tmp_path, "libc6", "2.35-0ubuntu3.8")
    machines.dpkg(tmp_path, "aws-neuronx-runtime-lib", "2.28.23.0-dd5879008")
    assert runtime_version(tmp_path) == "2.28.23.0"


def test_a_removed_package_is_not_the_runtime(tmp_path):
    machines.dpkg(tmp_path, "aws-neuronx-runtime-lib", "2.28.23.0-dd5", status="deinstall ok config-files")
    assert runtime_version(tmp_path) is None


@pytest.mark.parametrize("version", ["", "-", "latest", "\x00\x00"])
def test_a_version_that_dpkg_does_not_know_is_unknown(tmp_path, version):
    machines.dpkg(tmp_path, "aws-neuronx-runtime-lib", version)
    assert runtime_version(tmp_path) is None


def test_a_machine_without_the_library_has_no_runtime(tmp_path):
    assert runtime_version(tmp_path) is None
    machines.write(tmp_path, "opt/aws/neuron/lib", "a file")
    assert runtime_version(tmp_path) is None
