"""A backend with a simulated device clock: real tokens, modelled time.

For scheduling work without the device: each call takes at least as long as the model of the clock says. Every
figure that comes from it is *simulated* and must be labelled so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from neuron_server.backend import Backend, BackendInfo, DecodeRow, Output, PrefillRow
from neuron_server.device_clock import DeviceClock


class SimulatedBackend:
    """``backend`` slowed down to the clock: after each call the rest of the modelled time is waited out.

    ``sleep`` and ``now`` (seconds) can be replaced, so that tests use virtual time. Where the computation
    takes longer than the modelled time, the call takes that long and the simulation is too slow: choose a
    smaller model or the fake backend.
    """

    def __init__(
        self,
        backend: Backend,
        clock: DeviceClock,
        *,
        sleep: Callable[[float], None] = time.sleep,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._backend = backend
        self._clock = clock
        self._sleep = sleep
        self._now = now

    @property
    def info(self) -> BackendInfo:
        """The wrapped backend's."""
        return self._backend.info

    def prefill(self, rows: Sequence[PrefillRow]) -> Output:
        """``prefill_s`` for each row."""
        started = self._now()
        output = self._backend.prefill(rows)
        self._wait_until(started + self._clock.prefill_s * len(rows))
        return output

    def decode(self, rows: Sequence[DecodeRow]) -> Output:
        """``step_s`` of the number of rows."""
        started = self._now()
        output = self._backend.decode(rows)
        if rows:
            self._wait_until(started + self._clock.step_s(len(rows)))
        return output

    def release(self, slots: Sequence[int]) -> None:
        """No device work, so no time."""
        self._backend.release(slots)

    def close(self) -> None:
        """Close the wrapped backend."""
        self._backend.close()

    def _wait_until(self, end: float) -> None:
        rest = end - self._now()
        if rest > 0:
            self._sleep(rest)
