"""Whether the host's driver and the container's runtime library go together.

Neither AWS's runtime nor TGI says it at start: ``nrt_init`` fails with a number. Where the rules are from:
the known issues of the runtime's release notes (SDK 2.31: driver 2.29 needs a runtime of at least 2.33;
runtime 2.32 does not work with drivers up to 2.26), and the pairs that AWS's manifests and the images of
optimum-neuron and TGI ship. AWS's troubleshooting guide calls the driver backward compatible; the release
notes take that back.
"""

from __future__ import annotations

from dataclasses import dataclass

from launcher.device.versions import numbers
from neuron_server.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Release:
    """A driver and a runtime that were shipped together."""

    sdk: str
    driver: str
    runtime: str


#: Oldest first. The driver of SDK 2.30 is not in the documents we have, nor the last numbers of 2.31.
RELEASES = (
    Release("2.13.2", "2.12.18.0", "2.16.14.0"),  # optimum-neuron 0.0.11
    Release("2.18.0", "2.16.7.0", "2.20.22.0"),  # optimum-neuron 0.0.21
    Release("2.20.2", "2.18.20.0", "2.22.19.0"),  # optimum-neuron 0.0.28
    Release("2.24.1", "2.22.2.0", "2.26.42.0"),  # optimum-neuron 0.3.0, TGI 3.3
    Release("2.26.1", "2.24.7.0", "2.28.23.0"),  # optimum-neuron 0.4.5
    Release("2.28.1", "2.26.10", "2.30.51"),
    Release("2.31", "2.29", "2.33"),
    Release("2.32.0", "2.30.2", "2.34.10"),
)

#: The first driver that refuses runtimes below ``_RUNTIME_OF_NEW_DRIVER``.
_NEW_DRIVER, _RUNTIME_OF_NEW_DRIVER = (2, 29), (2, 33)
#: The runtime (SDK 2.30) that refuses drivers below ``_DRIVER_OF_2_32``.
_RUNTIME_2_32, _DRIVER_OF_2_32 = (2, 32), (2, 27)


@dataclass(frozen=True, slots=True)
class Mismatch:
    """What is wrong with a pair, and what to do about it; both are parts of a sentence."""

    found: str
    fix: str

    def __str__(self) -> str:
        return f"{self.found}: {self.fix}"


def release_of(runtime: str | None) -> Release | None:
    """The release that shipped this runtime, or the same minor version of it; ``None``: not one we know."""
    minor = numbers(runtime)[:2]
    return next((r for r in reversed(RELEASES) if numbers(r.runtime)[:2] == minor), None)


def mismatch(driver: str | None, runtime: str | None) -> Mismatch | None:
    """Why this pair is documented not to work; ``None`` when nothing speaks against it.

    A version that is unknown, or has no two numbers, speaks against nothing.
    """
    d, r = numbers(driver), numbers(runtime)
    if len(d) < 2 or len(r) < 2:
        return None
    if d >= _NEW_DRIVER and r < _RUNTIME_OF_NEW_DRIVER:
        return Mismatch(
            f"the host's Neuron driver is {driver} and the runtime library here is {runtime}; drivers from "
            "2.29 on need a runtime of at least 2.33, or no device can be opened (nrt_init fails)",
            f"{_older_driver(runtime)}; a runtime of SDK 2.31 or later would do too, but no optimum-neuron "
            "that is known here is made for it",
        )
    if r[:2] == _RUNTIME_2_32 and d < _DRIVER_OF_2_32:
        return Mismatch(
            f"the host's Neuron driver is {driver} and the runtime library here is {runtime} (SDK 2.30), "
            "which does not work with drivers up to 2.26",
            "install the driver of SDK 2.30 or later (aws-neuronx-dkms) on the host; or use an image of SDK "
            "2.28 or older",
        )
    return None


def doubt(driver: str | None, runtime: str | None) -> Mismatch | None:
    """A pair that no document covers: a driver older than the one that its runtime came with."""
    release, d = release_of(runtime), numbers(driver)
    if release is None or len(d) < 2 or mismatch(driver, runtime) or d >= numbers(release.driver):
        return None
    return Mismatch(
        f"the host's Neuron driver is {driver}, older than {release.driver}, which SDK {release.sdk} ships "
        f"with runtime {release.runtime}; whether they work together is not documented",
        _install(release),
    )


def check(driver: str | None, runtime: str | None) -> str | None:
    """``mismatch`` as one sentence, the remedy included."""
    found = mismatch(driver, runtime)
    return None if found is None else str(found)


def require(driver: str | None, runtime: str | None) -> None:
    """Raise ``ConfigError`` (rule ``neuron_driver``) for a pair that is documented not to work."""
    problem = check(driver, runtime)
    if problem is not None:
        raise ConfigError(problem, rule="neuron_driver")


def _older_driver(runtime: str | None) -> str:
    release = release_of(runtime)
    return (
        "install a driver below 2.29 (aws-neuronx-dkms) on the host" if release is None else _install(release)
    )


def _install(release: Release) -> str:
    return (
        f"install the driver of SDK {release.sdk} on the host (apt-get install --allow-downgrades "
        f"aws-neuronx-dkms={release.driver}, or dnf install aws-neuronx-dkms-{release.driver}) and reboot it"
    )
