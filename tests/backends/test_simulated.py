from __future__ import annotations

import pytest

from neuron_server.backend import DecodeRow, PrefillRow
from neuron_server.backends.fake import FakeBackend
from neuron_server.backends.simulated import DeviceClock, SimulatedBackend, parse_clock
from neuron_server.errors import ConfigError, SlotNotLiveError
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


def test_a_clock_is_parsed_in_any_order_of_batches() -> None:
    clock = DeviceClock(0.29, ((1, 0.0105), (32, 0.033)))
    assert parse_clock("0.29:1=0.0105,32=0.033") == clock
    assert parse_clock("0.29:32=33e-3, 1=0.0105") == clock


@pytest.mark.parametrize(
    "text",
    ["", "0.29", "0.29:", ":1=0.1", "0.29:1", "x:1=0.1", "0.29:0=0.1", "0.29:1.5=0.1", "0.29:1=", "0.29:1=-1",
     "nan:1=0.1", "0.29:1=inf", "0.29:1=0.1,1=0.2", "0.29:1=0.1,"],
)  # fmt: skip
def test_what_is_no_clock_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_clock(text)
    assert "--simulated-clock" in str(caught.value)
    assert "0.29:1=0.0105,32=0.033" in str(caught.value)


@pytest.mark.parametrize(
    ("live", "seconds"), [(1, 0.01), (2, 0.02), (4, 0.04), (8, 0.06), (12, 0.08), (64, 0.08)]
)
def test_step_seconds_are_interpolated_and_constant_outside(live: int, seconds: float) -> None:
    clock = DeviceClock(0.0, ((1, 0.01), (4, 0.04), (12, 0.08)))
    assert clock.step_s(live) == pytest.approx(seconds)


def test_below_the_first_point_its_seconds_count() -> None:
    assert DeviceClock(0.0, ((4, 0.04), (8, 0.05))).step_s(1) == 0.04


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
