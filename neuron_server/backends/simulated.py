"""A backend with a simulated device clock: real tokens, modelled time.

For scheduling work without the device: each call takes at least as long as the model of the clock says. Every
figure that comes from it is *simulated* and must be labelled so.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from neuron_server.backend import Backend, BackendInfo, DecodeRow, Output, PrefillRow
from neuron_server.errors import ConfigError


@dataclass(frozen=True, slots=True)
class DeviceClock:
    """``prefill_s`` seconds for each prefilled prompt, whatever its length (a static prefill graph), and the
    seconds of a decode step by the number of live slots: ``steps``, ascending, interpolated linearly and held
    constant outside."""

    prefill_s: float
    steps: tuple[tuple[int, float], ...]

    def step_s(self, live: int) -> float:
        """Seconds of one decode step with ``live`` slots."""
        below = [point for point in self.steps if point[0] <= live]
        above = [point for point in self.steps if point[0] >= live]
        if not below or not above:
            return (below or above)[-1 if below else 0][1]
        (low, low_s), (high, high_s) = below[-1], above[0]
        return low_s if high == low else low_s + (high_s - low_s) * (live - low) / (high - low)


def parse_clock(text: str) -> DeviceClock:
    """Parse ``PREFILL_S:B=STEP_S,B=STEP_S...``, as in ``0.29:1=0.0105,32=0.033``.

    Raises ``ConfigError`` that names the flag, the value and what would be right.
    """
    prefill, colon, steps = text.partition(":")
    try:
        points = sorted(_point(part) for part in steps.split(",")) if colon else []
        clock = DeviceClock(_seconds(prefill), tuple(points))
    except ValueError as error:
        raise _unusable(text, str(error)) from error
    if not points:
        raise _unusable(text, "it has no step seconds")
    if len({batch for batch, _ in points}) < len(points):
        raise _unusable(text, "it names a batch twice")
    return clock


def _point(part: str) -> tuple[int, float]:
    batch, _, seconds = part.partition("=")
    if int(batch) < 1:
        raise ValueError(f"batch {batch} is below 1")
    return int(batch), _seconds(seconds)


def _seconds(text: str) -> float:
    value = float(text)
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{text} is not a time in seconds")
    return value


def _unusable(text: str, why: str) -> ConfigError:
    return ConfigError(
        f"--simulated-clock {text!r}: {why}; right would be PREFILL_S:B=STEP_S,B=STEP_S,"
        " for example 0.29:1=0.0105,32=0.033",
        rule="simulated_clock",
    )


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
