"""The names of the backends, and how one is loaded."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Protocol

from neuron_server.backend import Backend
from neuron_server.backends.on_device import OnDeviceSampling
from neuron_server.backends.simulated import SimulatedBackend
from neuron_server.config import GeneratorConfig
from neuron_server.device_clock import FORM, DeviceClock, parse_clock
from neuron_server.errors import ConfigError, ModelError

#: name -> "module:class"; imported only when chosen, so ``fake`` needs no torch, ``cpu`` nothing of Neuron.
BACKENDS: Mapping[str, str] = {
    "cpu": "neuron_server.backends.cpu:CpuBackend",
    "fake": "neuron_server.backends.fake:FakeBackend",
    # Models compiled by optimum-neuron 0.3 and 0.4 (neuron_config.json).
    "neuron": "neuron_server.backends.neuron:NeuronBackend",
    # Models compiled by optimum-neuron up to 0.1 (the neuron object in config.json).
    "neuron_legacy": "neuron_server.backends.neuron_legacy:NeuronLegacyBackend",
}


#: Those that hand over logits whatever the model, so that a device that samples can be emulated on them.
_EMULATING = frozenset(("cpu", "fake"))


class _Loadable(Protocol):
    @classmethod
    def load(cls, config: GeneratorConfig) -> Backend: ...


def load_backend(config: GeneratorConfig) -> Backend:
    """Load the model and allocate its cache, in the calling thread, which must make all later calls too.

    Nothing is warmed up. Raises ``ModelError`` (``backend_unavailable`` for a backend that this release does
    not have, or whose packages are not installed here; else what is wrong with the model) or ``ConfigError``.
    """
    if config.backend not in BACKENDS:
        raise ModelError(
            f"there is no backend {config.backend!r}; available are {', '.join(BACKENDS)}",
            rule="backend_unavailable",
        )
    if config.on_device_sampling and config.backend not in _EMULATING:
        raise ConfigError(
            f"--on-device-sampling, but --backend is {config.backend}, where the compiled model says who "
            f"samples; it works with {' and '.join(sorted(_EMULATING))}",
            rule="emulation",
        )
    clock = _clock(config.simulated_clock)
    module, _, name = BACKENDS[config.backend].partition(":")
    kind: type[_Loadable] = getattr(importlib.import_module(module), name)
    backend: Backend = kind.load(config)
    if config.on_device_sampling:
        backend = OnDeviceSampling(backend)
    return backend if clock is None else SimulatedBackend(backend, clock)


def _clock(text: str | None) -> DeviceClock | None:
    try:
        return None if text is None else parse_clock(text)
    except ValueError as error:
        raise ConfigError(
            f"--simulated-clock {text!r}: {error}; it must be {FORM}", rule="emulation"
        ) from error
