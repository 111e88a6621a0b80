"""The environment that the programs get, and what ``--env`` says about the machine."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping

from launcher.device.inventory import Inventory
from launcher.device.rooted import machine_root
from launcher.device.stack import PACKAGES, Stack, installed
from launcher.flags import FLAGS
from launcher.parameters import Parameters
from neuron_server.lifeline import PARENT_PID_VARIABLE

_PACKAGES = (
    "neuronx-tgi",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "huggingface_hub",
    "grpcio",
)
_NEURON_LS_S = 10.0


def child_environment(parameters: Parameters, environ: Mapping[str, str]) -> dict[str, str]:
    """``environ`` for a program: our process id, the hub settings, and no secret that it does not need.

    ``COMPUTE_TYPE`` is what the header ``x-compute-type`` shows; TGI's own default names a GPU.
    """
    env = hub_environment(environ)
    env[PARENT_PID_VARIABLE] = str(os.getpid())
    # A pipe makes Python buffer its output, and the last words of a crash would be lost in it.
    env["PYTHONUNBUFFERED"] = "1"
    backend = parameters.text("backend")
    env.setdefault("COMPUTE_TYPE", "1-cpu" if backend in (None, "auto") else f"1-{backend}")
    if cache := parameters.text("huggingface_hub_cache"):
        # The newer name wins in huggingface_hub, so a flag must set it too.
        env.update(HUGGINGFACE_HUB_CACHE=cache, HF_HUB_CACHE=cache)
    return env


def hub_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """``environ`` without our secrets, and with the hub client's settings as TGI spells them."""
    secrets = {flag.variable for flag in FLAGS if flag.secret}
    env = {name: value for name, value in environ.items() if name not in secrets}
    env.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if token := environ.get("HF_API_TOKEN"):
        env["HF_TOKEN"] = token
    if env.get("HF_HUB_ENABLE_HF_TRANSFER") and importlib.util.find_spec("hf_transfer") is None:
        # TGI's images set it; without that package the hub client would refuse every download.
        del env["HF_HUB_ENABLE_HF_TRANSFER"]
    return env


def runtime_environment(inventory: Inventory | None = None) -> str:
    """The message of ``--env``; its first line is the one that issue reports are known by."""
    inventory = inventory or Inventory()
    lines = [
        "Runtime environment:",
        f"Target: {platform.machine()}-{platform.system().lower()}",
        f"Python version: {platform.python_version()}",
        *(f"{name}: {_version(name)}" for name in _PACKAGES),
        *_stack(installed(machine_root(os.environ), os.environ)),
        f"Docker label: {os.environ.get('DOCKER_LABEL', 'N/A')}",
        f"Neuron devices: {inventory.devices} ({_cores(inventory)})",
        f"Neuron driver: {inventory.driver or 'N/A'}",
        f"Instance type: {inventory.instance_type or 'N/A'}",
        "neuron-ls:",
        _neuron_ls(),
    ]
    return "\n".join(lines)


def _stack(stack: Stack) -> list[str]:
    """What the generator has of Neuron's, in an environment of its own in the image."""
    shown = {name: getattr(stack, field) for field, name in PACKAGES.items() if name not in _PACKAGES}
    lines = [f"{name}: {version or 'N/A'}" for name, version in shown.items()]
    lines += [f"{placeholder}: a placeholder of PyPI, not AWS's" for placeholder in stack.placeholders]
    return [*lines, f"Neuron runtime library: {stack.runtime or 'N/A'}"]


def _cores(inventory: Inventory) -> str:
    if inventory.cores is not None:
        return f"cores {inventory.cores} of {inventory.total_cores}"
    return inventory.cores_problem or "no cores"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "N/A"


def _neuron_ls() -> str:
    tool = shutil.which("neuron-ls") or shutil.which("neuron-ls", path="/opt/aws/neuron/bin")
    if tool is None:
        return "N/A"
    try:
        done = subprocess.run(  # noqa: S603 the vendor's tool, without arguments
            [tool], capture_output=True, text=True, timeout=_NEURON_LS_S, check=False, errors="replace"
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"N/A ({error})"
    return "\n".join("    " + line for line in (done.stdout or done.stderr).splitlines()) or "N/A"
