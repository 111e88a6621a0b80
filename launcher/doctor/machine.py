"""The rest of the machine: memory, disks, limits, the port, and the way to the hub."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

from launcher.device.rooted import entries, read
from launcher.doctor.case import Case
from launcher.doctor.finding import Finding, Status, fail, of_error, ok, warn
from launcher.host import port_holder
from launcher.memory_account import size
from launcher.plan import listen_address
from launcher.sockets import free_port
from neuron_server.errors import ConfigError

_GIB = 2**30
#: An 8B model in bfloat16 has 16 GB of weights; less room than this is worth a word before a download.
_DISK_BYTES = 20 * _GIB
_MEMORY_BYTES = 4 * _GIB
#: Descriptors that are no client's: libraries, sockets, logs.
_SPARE_FILES = 256
_CACHE = Path("/var/tmp/neuron-compile-cache")  # noqa: S108 the compiler's own default
_TOKENS = ("HF_TOKEN", "HF_API_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def memory(case: Case) -> Iterator[Finding]:
    """What a new process may take, the container's limit included."""
    free = case.host.available_bytes
    total = re.search(r"^MemTotal:\s+(\d+) kB", read(case.root, "/proc/meminfo"), re.MULTILINE)
    limit = read(case.root, "/sys/fs/cgroup/memory.max").strip()
    parts = [f"of {size(int(total.group(1)) * 1024)}"] if total else []
    parts += [f"the container's limit is {size(int(limit))}"] if limit.isdecimal() else []
    if free is None:
        yield warn("memory", "how much is available is unknown: /proc/meminfo does not say")
    elif free < _MEMORY_BYTES:
        yield warn(
            "memory",
            f"{size(free)} available ({', '.join(parts)}), and loading takes the weights' size of it, on a "
            "device too",
            "stop other processes, raise the container's limit, or take a smaller model",
        )
    else:
        yield ok("memory", f"{size(free)} available ({', '.join(parts) or 'of an unknown total'})")


def model_disk(case: Case) -> Iterator[Finding]:
    """Room and rights where hub models go."""
    yield _directory(
        case,
        "model disk",
        case.hub_cache,
        grave=Status.FAIL if case.to_fetch else Status.WARN,
        fix="choose another place with --huggingface-hub-cache",
    )


def compile_cache(case: Case) -> Iterator[Finding]:
    """Where compiled graphs are kept, and compilations that failed there: they are not tried again."""
    url = _cache_url(case)
    if not case.inventory.devices and not case.stack.has_neuron and not case.wants_neuron:
        return
    if "://" in url:
        yield ok("compile cache", f"{_without_user(url)}; whether it can be written is not tried here")
        return
    if not url.startswith("/"):
        yield warn(
            "compile cache", f"{url!r} is relative to wherever a process starts", "name an absolute directory"
        )
        return
    where = Path(url)
    yield _directory(
        case,
        "compile cache",
        where,
        grave=Status.WARN,
        fix="set NEURON_COMPILE_CACHE_URL to another directory",
    )
    failed, total = _cached_modules(case, where)
    if failed:
        yield warn(
            "compile cache",
            f"{failed} of {total} modules in {where} have no model.neff: their compilation failed, was "
            "interrupted or still runs, and one that failed is not tried again",
            "delete their MODULE_* directories, or add --retry_failed_compilation to NEURON_CC_FLAGS",
        )


def limits(case: Case) -> Iterator[Finding]:
    """The limits that our processes inherit."""
    text = read(case.root, "/proc/self/limits")
    files = _limit(text, "Max open files")
    concurrent = case.parameters.counted("max_concurrent_requests")
    shm = case.root / "dev/shm"
    others = f"locked memory {_limit(text, 'Max locked memory') or 'unknown'} (bytes), /dev/shm "
    others += size(shutil.disk_usage(shm).total) if shm.is_dir() else "absent"
    if files is None:
        yield ok("limits", f"open files unknown, {others}")
    elif files.isdecimal() and int(files) < 2 * concurrent + _SPARE_FILES:
        yield warn(
            "limits",
            f"{files} open files for --max-concurrent-requests {concurrent}; a connection needs one or two",
            "raise it (ulimit -n 65536; docker run --ulimit nofile=65536; LimitNOFILE= in a unit)",
        )
    else:
        yield ok("limits", f"{files} open files, {others}")


def port(case: Case) -> Iterator[Finding]:
    """Whether the router can listen; a fake machine is only asked who listens there."""
    number = case.parameters.counted("port")
    hostname, warnings = listen_address(case.parameters)
    for warning in warnings:
        yield warn("port", warning, "set --hostname to an IP address")
    where = f"[{hostname}]:{number}" if ":" in hostname else f"{hostname}:{number}"
    if case.root != Path("/"):
        holder = port_holder(number, case.root)
        fix = "stop it, or choose another --port"
        yield fail("port", f"{holder} listens on {number}", fix) if holder else ok("port", f"{where} is free")
        return
    try:
        free_port(hostname, number, str(case.parameters["port"]))
    except ConfigError as error:
        yield of_error("port", error)
    else:
        yield ok("port", f"{where} is free" if number else "a free one will be taken")


def hub(case: Case) -> Iterator[Finding]:
    """The way to the hub: a token, or none; offline, or not. Never a value."""
    names = [name for name in _TOKENS if case.environ.get(name, "").strip()]
    file = Path(case.environ.get("HF_TOKEN_PATH") or case.hub_home / "token")
    token = f"token from {names[0]}" if names else "no token: private and gated models are closed"
    if not names and os.path.isfile(case.below(file)):
        token = f"token from {file}"
    offline = [name for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if case.switched_on(name)]
    mirror = "; HF_ENDPOINT is set" if case.environ.get("HF_ENDPOINT") else ""
    model_id = case.parameters.text("model_id")
    if offline and case.to_fetch:
        yield fail(
            "hub",
            f"{' and '.join(offline)}: no network, and {model_id} is not in {case.hub_cache}",
            f"unset {' and '.join(offline)}, or download it first (text-generation-server download-weights)",
        )
    else:
        yield ok("hub", f"{token}{'; offline by ' + ' and '.join(offline) if offline else ''}{mirror}")


# -- parts ---------------------------------------------------------------------------------------------------


def _directory(case: Case, check: str, path: Path, *, grave: Status, fix: str) -> Finding:
    """Room and rights of a directory, or of the nearest one above it that exists."""
    there = case.below(path)
    while not os.path.exists(there) and there != there.parent:  # False too for what is closed to us
        there = there.parent
    if not there.is_dir():
        return Finding(check, grave, f"{path} cannot be made: {there} is a file", fix)
    if not os.access(there, os.W_OK | os.X_OK):
        return Finding(check, grave, f"{path} cannot be written by this user", fix)
    free = shutil.disk_usage(there).free
    if check == "model disk" and free < _DISK_BYTES:
        return warn(check, f"{size(free)} free in {path}; an 8B model takes 15 GiB", f"make room, or {fix}")
    return ok(
        check, f"{size(free)} free in {path}{'' if os.path.exists(case.below(path)) else ' (to be made)'}"
    )


def _cache_url(case: Case) -> str:
    """The compiler's cache: ``--cache_dir`` of NEURON_CC_FLAGS, which wins, or NEURON_COMPILE_CACHE_URL."""
    try:
        words = shlex.split(case.environ.get("NEURON_CC_FLAGS", ""))
    except ValueError:
        words = case.environ["NEURON_CC_FLAGS"].split()
    for word, following in zip(words, [*words[1:], ""], strict=False):
        name, equals, value = word.partition("=")
        if name == "--cache_dir" and (value or following):
            return value if equals else following
    return case.environ.get("NEURON_COMPILE_CACHE_URL") or str(_CACHE)


def _cached_modules(case: Case, where: Path) -> tuple[int, int]:
    """Modules without a graph, and all: ``<cache>/neuronxcc-<version>/MODULE_<hash>/model.neff``."""
    failed = total = 0
    base = case.below(where)
    for compiler in entries(base, "/"):
        for module in entries(base, f"/{compiler}") if compiler.startswith("neuronxcc-") else ():
            if module.startswith("MODULE_"):
                total += 1
                failed += not (base / compiler / module / "model.neff").is_file()
    return failed, total


def _limit(text: str, name: str) -> str | None:
    """The soft limit: a number, or ``unlimited``."""
    match = re.search(rf"^{name}\s+(\S+)", text, re.MULTILINE)
    return match.group(1) if match else None


def _without_user(url: str) -> str:
    return re.sub(r"//[^/@\s]*@", "//***@", url)
