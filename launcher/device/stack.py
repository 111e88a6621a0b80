"""Which Neuron software is installed beside us, read from package metadata and files; nothing is imported."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from launcher.device.rooted import entries, read
from launcher.device.versions import numbers
from launcher.program import GENERATOR_PYTHON

_LIBRARIES = "/opt/aws/neuron/lib"
_RUNTIME_FILE = re.compile(r"libnrt\.so\.(\d+(?:\.\d+){2,})", re.ASCII)
_RUNTIME_PACKAGE = "aws-neuronx-runtime-lib"

#: Packages whose names on PyPI belong to placeholders of a few kilobytes, versions 1.0 and 0.1. AWS's own
#: index has the real ones, and none so old that a model served here could have been compiled by it.
_ON_AWS_INDEX = (
    *("neuronx-cc", "torch-neuronx", "libneuronxla", "transformers-neuronx", "neuronx-distributed"),
    *("neuronx-distributed-inference", "vllm-neuron"),
)
_PLACEHOLDERS = ((1,), (0, 1))

#: Where Python packages lie below a root that is not this machine's.
_SITE_PACKAGES = (
    *("usr/lib/python3/dist-packages", "usr/local/lib/python3.*/dist-packages"),
    *("usr/local/lib/python3.*/site-packages", "opt/*/lib/python3.*/site-packages"),
)


@dataclass(frozen=True, slots=True)
class Stack:
    """Versions as their packages spell them; ``None`` for what is not installed.

    ``runtime`` is that of the runtime library (``libnrt``), which lives in the container, while the driver is
    the host's. ``placeholders``: ``neuronx-cc 1.0.post1``, packages of PyPI that only have the name; they
    count as not installed.
    """

    optimum_neuron: str | None = None
    compiler: str | None = None
    torch_neuronx: str | None = None
    transformers_neuronx: str | None = None
    runtime: str | None = None
    neuronx_distributed: str | None = None
    libneuronxla: str | None = None
    torch: str | None = None
    transformers: str | None = None
    placeholders: tuple[str, ...] = ()

    @property
    def has_neuron(self) -> bool:
        """Whether any package of Neuron is installed, a placeholder included."""
        own = (self.optimum_neuron, self.compiler, self.torch_neuronx, self.transformers_neuronx)
        return any(own) or bool(self.placeholders)


#: Field of ``Stack`` -> package.
PACKAGES = {
    "optimum_neuron": "optimum-neuron",
    "compiler": "neuronx-cc",
    "torch_neuronx": "torch-neuronx",
    "transformers_neuronx": "transformers-neuronx",
    "neuronx_distributed": "neuronx-distributed",
    "libneuronxla": "libneuronxla",
    "torch": "torch",
    "transformers": "transformers",
}


def installed(root: Path = Path("/"), environ: Mapping[str, str] = MappingProxyType({})) -> Stack:
    """What is installed for the generator's interpreter, which ``environ`` may name; else for this one.

    Below another ``root`` without that name: in the usual places. Never raises.
    """
    paths = _site_packages(root, environ)
    found = {name: _version(name, paths) for name in {*PACKAGES.values(), *_ON_AWS_INDEX}}
    placeholders = {name for name in _ON_AWS_INDEX if _trimmed(found[name]) in _PLACEHOLDERS}
    versions = {field: None if name in placeholders else found[name] for field, name in PACKAGES.items()}
    return Stack(
        **versions,
        runtime=runtime_version(root),
        placeholders=tuple(f"{name} {found[name]}" for name in sorted(placeholders)),
    )


def _site_packages(root: Path, environ: Mapping[str, str]) -> list[str] | None:
    """Where to look; ``None``: where this interpreter looks.

    The environment of an interpreter is told from its path, ``<environment>/bin/python``, links not followed.
    """
    named = environ.get(GENERATOR_PYTHON)
    if named:
        prefix = root / named.lstrip("/")
        places = [prefix.parents[1]] if len(Path(named).parts) > 2 else []
        patterns: Sequence[str] = ("lib/python3*/site-packages", "lib/python3*/dist-packages")
    elif root == Path("/"):
        return None
    else:
        places, patterns = [root], _SITE_PACKAGES
    return [str(path) for place in places for pattern in patterns for path in sorted(place.glob(pattern))]


def _version(name: str, paths: Sequence[str] | None) -> str | None:
    """The version of the first such distribution that says one."""
    path = sys.path if paths is None else list(paths)
    with contextlib.suppress(OSError, ValueError):  # metadata that is binary, or cut off
        for distribution in importlib.metadata.distributions(name=name, path=path):
            version: str | None = distribution.metadata["Version"]
            if version:
                return version
    return None


def _trimmed(version: str | None) -> tuple[int, ...]:
    """The numbers without zeros at the end: ``1.0.0`` is ``1``."""
    parts = list(numbers(version))
    while parts and parts[-1] == 0:
        parts.pop()
    return tuple(parts)


def runtime_version(root: Path) -> str | None:
    """Version of ``libnrt``: the file that its link names, else the newest one there, else dpkg's word."""
    linked = (_RUNTIME_FILE.fullmatch(name) for name in _link_targets(root))
    version = next((match.group(1) for match in linked if match), None)
    if version is not None:
        return version
    matches = (_RUNTIME_FILE.fullmatch(name) for name in entries(root, _LIBRARIES))
    versions = [match.group(1) for match in matches if match]
    return max(versions, key=numbers) if versions else _from_dpkg(root)


def _link_targets(root: Path) -> Iterator[str]:
    for name in ("libnrt.so.1", "libnrt.so"):
        with contextlib.suppress(OSError):
            yield Path(os.readlink(root / _LIBRARIES.lstrip("/") / name)).name


def _from_dpkg(root: Path) -> str | None:
    """``2.28.23.0`` of the entry's ``Version: 2.28.23.0-dd5879008``; removed packages keep an entry."""
    for entry in read(root, "/var/lib/dpkg/status").split("\n\n"):
        lines = entry.splitlines()
        if f"Package: {_RUNTIME_PACKAGE}" in lines and "Status: install ok installed" in lines:
            text = next((line for line in lines if line.startswith("Version:")), "")
            version = text.partition(":")[2].strip().rpartition("-")[0] or text.partition(":")[2].strip()
            return version if numbers(version) else None
    return None
