"""Which packages of AWS a release of optimum-neuron was made for, and whether these are installed."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.device.stack import PACKAGES, Stack
from launcher.device.versions import numbers


@dataclass(frozen=True, slots=True)
class Pins:
    """One release and what it pins (its packaging metadata and its image). ``None``: it needs none."""

    optimum_neuron: str
    sdk: str
    compiler: str
    torch_neuronx: str
    torch: str
    neuronx_distributed: str
    libneuronxla: str
    transformers_neuronx: str | None = None


@dataclass(frozen=True, slots=True)
class Misfit:
    """A package that is not the one pinned. ``grave``: absent, or of another minor version."""

    package: str
    have: str | None
    want: str
    grave: bool


#: Oldest first; releases in between have the pins of the one before.
PINS = (
    Pins("0.0.28", "2.20.2", "2.15.143.0", "2.1.2.2.3.2", "2.1.2", "0.9.0", "2.0.5347.0", "0.12.313"),
    Pins("0.1.0", "2.21", "2.16.372.0", "2.5.1.2.4.0", "2.5.1", "0.10.1", "2.1.681.0", "0.13.322"),
    Pins("0.2.0", "2.22", "2.17.194.0", "2.5.1.2.6.0", "2.5.1", "0.11.0", "2.2.1630.0"),
    Pins("0.3.0", "2.24.1", "2.19.8089.0", "2.7.0.2.8.6734", "2.7.0", "0.13.14393", "2.2.4410.0"),
    Pins("0.4.0", "2.26.0", "2.21.18209.0", "2.8.0.2.10.13553", "2.8.0", "0.15.22404", "2.2.12677.0"),
    Pins("0.4.3", "2.26.1", "2.21.33363.0", "2.8.0.2.10.16998", "2.8.0", "0.15.22404", "2.2.12677.0"),
)
#: The newest release that the table was written for.
NEWEST = (0, 4, 6)


def pins_of(optimum_neuron: str | None) -> Pins | None:
    """The row of a release; ``None`` for one before the table or after it, and for no version."""
    version = numbers(optimum_neuron)
    if not version or version[:3] > NEWEST:
        return None
    return next((row for row in reversed(PINS) if numbers(row.optimum_neuron) <= version), None)


def misfits(stack: Stack) -> tuple[Misfit, ...]:
    """Installed packages that are not what the installed optimum-neuron pins; none for an unknown release."""
    pins = pins_of(stack.optimum_neuron)
    if pins is None:
        return ()
    wanted = {
        field: getattr(pins, field)
        for field in PACKAGES
        if field not in ("optimum_neuron", "transformers") and getattr(pins, field) is not None
    }
    return tuple(
        Misfit(PACKAGES[field], have, want, have is None or numbers(have)[:2] != numbers(want)[:2])
        for field, want in wanted.items()
        if (have := getattr(stack, field)) is None or _differs(have, want)
    )


def _differs(have: str, want: str) -> bool:
    """``2.21.33363.0+82129205`` is ``2.21.33363.0``, and ``2.8.0+cpu`` is ``2.8.0``."""
    return have.partition("+")[0] != want and numbers(have) != numbers(want)
