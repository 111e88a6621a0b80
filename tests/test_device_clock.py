from __future__ import annotations

import pytest

from neuron_server.device_clock import FORM, DeviceClock, parse_clock


def test_a_clock_is_parsed_in_any_order_of_batches() -> None:
    clock = DeviceClock(0.29, ((1, 0.0105), (32, 0.033)))
    assert parse_clock("0.29:1=0.0105,32=0.033") == clock
    assert parse_clock("0.29:32=33e-3, 1=0.0105") == clock


@pytest.mark.parametrize(
    "text",
    ["", "0.29", "0.29:", ":1=0.1", "0.29:1", "x:1=0.1", "0.29:0=0.1", "0.29:1.5=0.1", "0.29:1=", "0.29:1=-1",
     "nan:1=0.1", "0.29:1=inf", "0.29:1=0.1,1=0.2", "0.29:1=0.1,"],
)  # fmt: skip
def test_what_is_no_clock_is_refused_in_words(text: str) -> None:
    with pytest.raises(ValueError, match=r"^it names a batch twice|^it has no step|is not a|is below 1"):
        parse_clock(text)


def test_the_example_of_the_form_is_a_clock() -> None:
    parse_clock(FORM.rpartition(" ")[2])


@pytest.mark.parametrize(
    ("live", "seconds"), [(1, 0.01), (2, 0.02), (4, 0.04), (8, 0.06), (12, 0.08), (64, 0.08)]
)
def test_step_seconds_are_interpolated_and_constant_outside(live: int, seconds: float) -> None:
    clock = DeviceClock(0.0, ((1, 0.01), (4, 0.04), (12, 0.08)))
    assert clock.step_s(live) == pytest.approx(seconds)


def test_below_the_first_point_its_seconds_count() -> None:
    assert DeviceClock(0.0, ((4, 0.04), (8, 0.05))).step_s(1) == 0.04
