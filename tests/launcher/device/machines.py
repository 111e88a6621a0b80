"""Fake machines: the files below a root that tell a Neuron machine, made without privileges.

``device_files`` are plain files that stand for device nodes, which only root can make.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

#: Driver and runtime of the image that serves optimum-neuron 0.4.5.
DRIVER, RUNTIME = "2.24.7.0", "2.28.23.0"
#: Packages of that image.
PACKAGES: Mapping[str, str] = {
    "optimum-neuron": "0.4.5",
    "neuronx-cc": "2.21.33363.0",
    "torch-neuronx": "2.8.0.2.10.16998",
    "torch": "2.8.0",
    "neuronx-distributed": "0.15.22404",
    "libneuronxla": "2.2.12677.0",
    "transformers": "4.57.6",
}
_GIB = 2**30
#: Inode of the first PID namespace of every Linux kernel.
HOST_NAMESPACE, OTHER_NAMESPACE = 4026531836, 4026532208
SITE_PACKAGES = "opt/venv/lib/python3.11/site-packages"


def write(root: Path, name: str, text: str) -> Path:
    """A file below ``root``, its directories included."""
    path = root / name.lstrip("/")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def machine(
    root: Path,
    *,
    devices: int = 0,
    instance: str | None = None,
    driver: str | None = None,
    runtime: str | None = None,
    packages: Mapping[str, str] | None = None,
    memory: int = 16 * _GIB,
    free_memory: int | None = None,
    namespace: int = HOST_NAMESPACE,
) -> Path:
    """A machine below ``root``; ``driver`` and ``runtime`` are versions, ``None`` where there is none."""
    majors = "Character devices:\n  1 mem\n  5 /dev/tty\n 10 misc\n"
    majors += "246 neuron\n" if driver else ""
    write(root, "proc/devices", f"{majors}\nBlock devices:\n259 blkext\n")
    write(root, "dev/null", "")
    for number in range(devices):
        write(root, f"dev/neuron{number}", "")
    if driver:
        write(root, "sys/module/neuron/version", f"{driver}\n")
    if instance:
        write(root, "sys/devices/virtual/dmi/id/product_name", f"{instance}\n")
    if runtime:
        write(root, f"opt/aws/neuron/lib/libnrt.so.{runtime}", "")
        dpkg(root, "aws-neuronx-runtime-lib", f"{runtime}-dd5879008")
    for name, version in (packages or {}).items():
        package(root, name, version)
    free = memory - 2 * _GIB if free_memory is None else free_memory
    write(root, "proc/meminfo", f"MemTotal: {memory // 1024} kB\nMemAvailable: {free // 1024} kB\n")
    process(root, 1, "init", namespace=namespace)
    limits(root)
    os.symlink("1", root / "proc/self")
    (root / "var/tmp").mkdir(parents=True)
    (root / "dev/shm").mkdir()
    return root


def process(
    root: Path,
    pid: int,
    name: str,
    *,
    opens: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
    namespace: int | None = None,
) -> None:
    """A process with these files open; what it was started with is in ``environ``."""
    write(root, f"proc/{pid}/comm", f"{name}\n")
    write(root, f"proc/{pid}/environ", "".join(f"{k}={v}\0" for k, v in (environ or {}).items()))
    fds = root / f"proc/{pid}/fd"
    fds.mkdir()
    for number, target in enumerate(("/dev/null", *opens)):
        os.symlink(target, fds / str(number))
    if namespace is not None:
        (root / f"proc/{pid}/ns").mkdir()
        os.symlink(f"pid:[{namespace}]", root / f"proc/{pid}/ns/pid")


def limits(root: Path, *, open_files: str = "1048576") -> None:
    """The limits of our own process, of which the soft one comes first."""
    rows = (("Max open files", open_files, "files"), ("Max locked memory", "unlimited", "bytes"))
    lines = (f"{name:<26}{value:<21}{value:<21}{unit}\n" for name, value, unit in rows)
    write(
        root, "proc/1/limits", "Limit                     Soft Limit           Hard Limit\n" + "".join(lines)
    )


def package(root: Path, name: str, version: str, *, site_packages: str = SITE_PACKAGES) -> None:
    """The metadata of an installed Python package."""
    stem = f"{site_packages}/{name.replace('-', '_')}-{version}.dist-info"
    write(root, f"{stem}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def dpkg(root: Path, name: str, version: str, status: str = "install ok installed") -> None:
    """One more package in dpkg's list."""
    path = root / "var/lib/dpkg/status"
    text = path.read_text() if path.exists() else ""
    write(root, "var/lib/dpkg/status", f"{text}Package: {name}\nStatus: {status}\nVersion: {version}\n\n")


def inf2_xlarge(root: Path) -> Path:
    """A healthy one with all that optimum-neuron 0.4.5 needs: two cores, 16 GiB."""
    return machine(root, devices=1, instance="inf2.xlarge", driver=DRIVER, runtime=RUNTIME, packages=PACKAGES)


def inf2_8xlarge(root: Path) -> Path:
    """Two cores, 128 GiB."""
    return machine(
        root,
        devices=1,
        instance="inf2.8xlarge",
        driver=DRIVER,
        runtime=RUNTIME,
        packages=PACKAGES,
        memory=128 * _GIB,
    )


def inf2_48xlarge(root: Path) -> Path:
    """A healthy one: 24 cores, 768 GiB."""
    return machine(
        root,
        devices=12,
        instance="inf2.48xlarge",
        driver=DRIVER,
        runtime=RUNTIME,
        packages=PACKAGES,
        memory=768 * _GIB,
    )


def driver_too_new(root: Path) -> Path:
    """The trap of an upgraded host: driver 2.29 under a container with runtime 2.28."""
    return machine(
        root,
        devices=1,
        instance="inf2.8xlarge",
        driver="2.29.1.0",
        runtime=RUNTIME,
        packages=PACKAGES,
        memory=128 * _GIB,
    )


def cores_held(root: Path) -> Path:
    """A healthy inf2.xlarge whose cores a crashed-but-alive server still has."""
    inf2_xlarge(root)
    process(root, 4242, "python3", opens=["/dev/neuron0", "/dev/neuron0"])
    return root


def no_device(root: Path) -> Path:
    """A machine that has nothing of Neuron."""
    return machine(root, instance="m7i.2xlarge", memory=32 * _GIB)


def container_without_dmi(root: Path) -> Path:
    """A container with one device of a larger host, which does not say what it is."""
    return machine(
        root, devices=1, driver=DRIVER, runtime=RUNTIME, packages=PACKAGES, namespace=OTHER_NAMESPACE
    )
