"""The Neuron side: devices, what drives them, what is installed for them, and whether the cores are free."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from launcher.device import driver
from launcher.device.cores import NUMBER, VISIBLE, parse_number_of_cores, parse_visible_cores
from launcher.device.instances import INSTANCES
from launcher.device.matrix import misfits, pins_of
from launcher.doctor.case import Case
from launcher.doctor.finding import Finding, Status, fail, of_error, ok, warn
from neuron_server.errors import ConfigError, ModelError

#: Processes that are described; of the others the numbers are enough.
_NAMED = 4
_FAMILIES = ("inf2", "trn1", "trn1n", "trn2", "trn2u")
_INSTALL = "use the project's neuron image, or install from AWS's own index (pip.repos.neuron.amazonaws.com)"
#: Others of the runtime's variables -> what they may be (AWS's runtime configuration guide).
_VARIABLES = {
    "NEURON_RT_EXEC_TIMEOUT": (re.compile(r"[1-9]\d{0,8}"), "a number of seconds; it is 30 when unset"),
    "NEURON_RT_LOG_LEVEL": (
        re.compile(r"(?i)error|warn|warning|info|debug|critical|fatal|trace|verbose|none"),
        "a level such as ERROR or INFO",
    ),
}


def devices(case: Case) -> Iterator[Finding]:
    """Devices that the driver stands behind."""
    inventory = case.inventory
    if inventory.devices:
        nodes = ", ".join(f"/dev/neuron{n}" for n in inventory.device_numbers[:3])
        more = ", ..." if inventory.devices > 3 else ""
        yield ok(
            "devices",
            f"{inventory.devices} Neuron device(s) with {inventory.total_cores} cores: {nodes}{more}",
        )
        return
    found, fix = inventory.absence
    if case.wants_neuron:
        yield fail("devices", found, fix)
    elif inventory.stale_nodes or inventory.driver_loaded or inventory.family in ("inf2", "trn1", "trn1n"):
        yield warn("devices", f"{found}, so models are served on the CPU", fix)
    else:
        yield ok("devices", "no Neuron device: models are served on the CPU")


def instance(case: Case) -> Iterator[Finding]:
    """The instance type, and whether all of its devices can be seen."""
    inventory = case.inventory
    name = inventory.instance_type
    known = INSTANCES.get(name or "")
    if name is None:
        note = "; Inferentia2 is assumed" if inventory.devices else ""
        yield ok("instance", f"unknown: the machine does not say (nor do some containers){note}")
    elif inventory.family not in _FAMILIES:
        note = f", whose family optimum-neuron does not serve from {inventory.devices} device(s)"
        if inventory.devices:
            yield Finding("instance", case.grave, f"{name}{note}", "use inf2")
        else:
            yield ok("instance", f"{name}, not one with Neuron devices")
    elif known is not None and 0 < inventory.devices != known.devices:
        yield warn(
            "instance",
            f"{name} has {known.devices} device(s), of which {inventory.devices} can be seen from here",
            "fine for a container that was given these; else look for errors of the driver in dmesg",
        )
    elif known is not None:
        yield ok(
            "instance", f"{name}: {known.devices} device(s), {known.cores} cores; its models' target is trn1"
        )
    else:
        yield ok("instance", name)


def driver_and_runtime(case: Case) -> Iterator[Finding]:
    """The host's driver against the container's runtime library."""
    version, runtime = case.inventory.driver, case.stack.runtime
    if not case.inventory.devices and not version:
        have = f"runtime {runtime}, but no driver" if runtime else "neither a driver nor a runtime library"
        if case.wants_neuron:
            yield fail("driver", have, "install aws-neuronx-dkms on the host, and use the neuron image")
        else:
            yield ok("driver", f"{have}; the CPU needs none")
    elif problem := driver.mismatch(version, runtime):
        yield Finding("driver", case.grave, problem.found, problem.fix)
    elif doubt := driver.doubt(version, runtime):
        yield warn("driver", doubt.found, doubt.fix)
    elif version is None:
        yield warn(
            "driver",
            f"the version of the driver is unknown (runtime library {runtime or 'not found'}): "
            "/sys/module/neuron/version is absent or holds none",
            "look with `modinfo neuron` on the host; drivers from 2.29 on need a runtime of at least 2.33",
        )
    elif runtime is None:
        yield Finding(
            "driver",
            case.grave if case.inventory.devices else Status.WARN,
            f"the driver is {version}, but there is no runtime library (libnrt) in /opt/aws/neuron/lib",
            "use the neuron image, or apt-get install aws-neuronx-runtime-lib",
        )
    else:
        release = driver.release_of(runtime)
        yield ok(
            "driver",
            f"driver {version} with runtime library {runtime}"
            + (f" (SDK {release.sdk} has driver {release.driver})" if release else ""),
        )


def packages(case: Case) -> Iterator[Finding]:
    """What is installed, whether it is AWS's, and whether it fits together."""
    stack = case.stack
    if stack.placeholders:
        yield Finding(
            "packages",
            case.grave,
            f"{', '.join(stack.placeholders)}: placeholders of PyPI that only have the name, not AWS's",
            _INSTALL,
        )
    if stack.optimum_neuron is None:
        if case.on_neuron:
            yield fail("packages", "optimum-neuron is not installed, and only it serves on Neuron", _INSTALL)
        elif not stack.placeholders:
            yield ok("packages", "none of Neuron's; the CPU needs none")
        return
    pins = pins_of(stack.optimum_neuron)
    if pins is None:
        yield warn(
            "packages",
            f"optimum-neuron {stack.optimum_neuron} is none of the releases that are known here",
            "0.4.5 is the one that is served and tested; 0.3.0 and 0.0.28 work too",
        )
        return
    wrong = misfits(stack)
    for misfit in wrong:
        yield Finding(
            "packages",
            case.grave if misfit.grave else Status.WARN,
            f"{misfit.package} is {misfit.have or 'not installed'}, but optimum-neuron "
            f"{stack.optimum_neuron} was made for {misfit.want} (SDK {pins.sdk})",
            _INSTALL,
        )
    if not wrong:
        yield ok(
            "packages",
            f"optimum-neuron {stack.optimum_neuron} with neuronx-cc {stack.compiler} and torch-neuronx "
            f"{stack.torch_neuronx}, as of SDK {pins.sdk}",
        )


def cores(case: Case) -> Iterator[Finding]:
    """The cores that we may use, less those that other processes hold."""
    inventory = case.inventory
    if not inventory.devices:
        return
    try:
        usable = inventory.usable_cores()
    except ConfigError as error:
        yield of_error("cores", error, case.grave)
        return
    per_device = inventory.total_cores // inventory.devices
    ours = set(range(usable.first, usable.last + 1))
    of_ours = {h: ours & h.cores(inventory.device_numbers, per_device) for h in case.holders.processes}
    holders = [holder for holder, cores in of_ours.items() if cores]
    taken, unseen = set[int]().union(*of_ours.values()), case.holders.blind_spots
    needed = _needed(case)
    note = f" ({unseen})" if unseen else ""
    if not taken:
        free = f"{usable} of {inventory.total_cores} can be used, and no process that can be seen holds one"
        yield ok("cores", free + note)
        return
    who = "; ".join(map(str, holders[:_NAMED]))
    if len(holders) > _NAMED:
        who += f"; and {len(holders) - _NAMED} more"
    pids = " ".join(str(holder.pid) for holder in holders)
    left = len(ours) - len(taken)
    yield Finding(
        "cores",
        case.grave if left < needed else Status.WARN,
        f"{left} of the cores {usable} are free: {who}; what a process reserved is held until it ends{note}",
        f"stop it (kill {pids}), or start it and this server each with its own {VISIBLE}",
    )


def _needed(case: Case) -> int:
    """Cores of all replicas, as far as flags and model say; a wrong model is another check's matter."""
    degree = case.parameters.integer("num_shard")
    with contextlib.suppress(ModelError):
        if degree is None and case.facts is not None and case.facts.static is not None:
            degree = case.facts.static.cores
    return (degree or 1) * (case.parameters.integer("data_parallel_size") or 1)


def variables(case: Case) -> Iterator[Finding]:
    """The runtime's variables, each by its own rule; no value is used here."""
    names = sorted(name for name in case.environ if name.startswith("NEURON_RT_"))
    wrong = False
    for name, parse in ((VISIBLE, parse_visible_cores), (NUMBER, parse_number_of_cores)):
        try:
            if name in case.environ:
                parse(case.environ[name])
        except ConfigError as error:
            wrong = True
            yield of_error("variables", error, case.grave)
    for name, (pattern, right) in _VARIABLES.items():
        value = case.environ.get(name)
        if value is not None and not pattern.fullmatch(value.strip()):
            wrong = True
            yield warn("variables", f"{name} is {value[:80]!r}", f"set it to {right}, or unset it")
    if VISIBLE in names and NUMBER in names:
        wrong = True
        yield warn("variables", f"both {VISIBLE} and {NUMBER} are set; the first wins", f"unset {NUMBER}")
    if not wrong:
        yield ok("variables", f"{', '.join(names)} set" if names else "no NEURON_RT_* is set")
