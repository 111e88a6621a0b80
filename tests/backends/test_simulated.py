from __future__ import annotations

import pytest

from neuron_server.backend import DecodeRow, PrefillRow
from neuron_server.backends.fake import FakeBackend
from neuron_server.backends.simulated import SimulatedBackend
from neuron_server.device_clock import DeviceClock
from neuron_server.errors import SlotNotLiveError
from neuron_server.shape import StaticShape


class VirtualTime:
    """A clock that moves only when someone sleeps, or computes for ``cost`` seconds per reading."""

    def __init__(self, cost: float = 0.0) -> None:
        self.time = 100.0
        self.cost = cost
        self.slept: list[float] = []

    def now(self) -> float:
        self.time += self.cost
        return self.time

    def sleep(self, seconds: float) -> None:
        self.slept.append(round(seconds, 9))
        self.time += seconds


def backend(time: VirtualTime) -> SimulatedBackend:
    clock = DeviceClock(0.25, ((1, 0.01), (4, 0.04)))
    fake = FakeBackend(32, StaticShape(4, 16), 8)
    return SimulatedBackend(fake, clock, sleep=time.sleep, now=time.now)


def test_the_computed_positions_are_those_of_the_backend_behind_the_clock() -> None:
    simulated = backend(VirtualTime())
    assert simulated.prefill([PrefillRow(0, [1, 2])]).positions == 8
    assert simulated.decode([DecodeRow(0, 1, 2)]).positions == 4


def test_each_prompt_and_each_step_takes_its_time() -> None:
    time = VirtualTime()
    simulated = backend(time)
    simulated.prefill([PrefillRow(0, [1, 2]), PrefillRow(1, [3, 4])])
    simulated.decode([DecodeRow(0, 1, 2), DecodeRow(1, 1, 2)])
    simulated.release([0])
    simulated.decode([DecodeRow(1, 1, 3)])
    assert time.slept == [0.5, 0.02, 0.01]


def test_only_the_rest_is_waited_out_and_never_less_than_nothing() -> None:
    time = VirtualTime(cost=0.015)
    simulated = backend(time)
    simulated.prefill([PrefillRow(0, [1, 2])])
    simulated.decode([DecodeRow(0, 1, 2)])
    assert time.slept == [0.235]


def test_tokens_and_refusals_are_those_of_the_backend_inside() -> None:
    time = VirtualTime()
    simulated, plain = backend(time), FakeBackend(32, StaticShape(4, 16), 8)
    rows = [PrefillRow(2, [1, 2, 3])]
    assert (simulated.prefill(rows).logits == plain.prefill(rows).logits).all()
    assert simulated.info == plain.info
    before = list(time.slept)
    with pytest.raises(SlotNotLiveError):
        simulated.release([0])
    assert simulated.prefill([]).logits.shape == (0, 32)
    assert time.slept == before
