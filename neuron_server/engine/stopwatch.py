"""One call of the backend on the clock, from its start until its tokens are chosen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from neuron_server.backend import Output
from neuron_server.session import Pass

#: Why a group could join running requests; see ``Pass``.
Concat = Literal["", "backpressure", "wait_exceeded"]


@dataclass(slots=True)
class Stopwatch:
    """Runs from its making; ``returned``, then ``passed``, or ``failed`` instead. Fields as ``Pass``'s."""

    clock: Callable[[], float]
    method: Literal["prefill", "decode"]
    rows: int
    joined: int
    tokens: int
    stalled: int = 0
    concat: Concat = ""
    forward_s: float = 0.0
    positions: int = 0
    _lap: float = field(init=False)

    def __post_init__(self) -> None:
        self._lap = self.clock()

    def returned(self, output: Output) -> Output:
        """The backend is done; hands its output on."""
        now = self.clock()
        self.forward_s, self._lap = now - self._lap, now
        self.positions = output.positions
        return output

    def passed(self) -> Pass:
        """The tokens are chosen."""
        sampling_s = self.clock() - self._lap
        return Pass(
            self.method,
            self.rows,
            self.joined,
            self.forward_s,
            sampling_s,
            self.tokens,
            self.positions,
            self.stalled,
            False,
            self.concat,
        )

    def failed(self) -> Pass:
        """The backend raised instead: nobody joined and no token was made."""
        forward_s = self.clock() - self._lap
        return Pass(self.method, self.rows, forward_s=forward_s, stalled=self.stalled, failed=True)
