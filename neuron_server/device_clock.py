"""How long a device would take: the model of time behind ``--simulated-clock``."""

from __future__ import annotations

import math
from dataclasses import dataclass

#: What a clock looks like.
FORM = "PREFILL_S:B=STEP_S,B=STEP_S..., for example 0.3:1=0.02,16=0.04"


@dataclass(frozen=True, slots=True)
class DeviceClock:
    """Seconds that calls of a device take, by a simple model.

    ``prefill_s`` for each prefilled prompt, whatever its length (a static prefill graph). ``steps``: live
    slots and the seconds of a decode step, ascending, interpolated linearly and held constant outside.
    """

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
    """Parse ``PREFILL_S:B=STEP_S,B=STEP_S...``; raises ``ValueError`` that says what is wrong with it."""
    prefill, colon, steps = text.partition(":")
    if not colon:
        raise ValueError("it has no step seconds")
    points = sorted(_point(part) for part in steps.split(","))
    if len({batch for batch, _ in points}) < len(points):
        raise ValueError("it names a batch twice")
    return DeviceClock(_seconds(prefill), tuple(points))


def _point(part: str) -> tuple[int, float]:
    batch, _, seconds = part.partition("=")
    try:
        count = int(batch)
    except ValueError:
        raise ValueError(f"{batch!r} is not a number of slots") from None
    if count < 1:
        raise ValueError(f"batch {batch} is below 1")
    return count, _seconds(seconds)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{text!r} is not a time in seconds")
    return value
