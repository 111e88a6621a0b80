"""How often one generator may be started again before it is left alone."""

from __future__ import annotations

import math
from collections import deque

#: Restarts longer ago than this are forgotten.
RESTART_WINDOW_S = 300.0


class Restarts:
    """The restarts of one generator: at most ``most`` within any ``RESTART_WINDOW_S``.

    Each generator has its own: of twelve replicas, three may have had an accident each, and the twelfth one's
    first is still no reason to give up. Times are of ``time.monotonic``.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._at: deque[float] = deque()

    def wait_s(self, now: float) -> float:
        """Seconds until it may be restarted: 0 at once, ``inf`` never."""
        while self._at and now - self._at[0] >= RESTART_WINDOW_S:
            self._at.popleft()
        if len(self._at) < self.most:
            return 0.0
        return self._at[0] + RESTART_WINDOW_S - now if self._at else math.inf

    def note(self, now: float) -> int:
        """It is restarted now; how many restarts of the last five minutes that makes."""
        self._at.append(now)
        return len(self._at)
