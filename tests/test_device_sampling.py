"""TGI's parameters as rows of a device that samples, and what is refused by name."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from neuron_server.backend import GREEDY, BackendInfo, DeviceSampling
from neuron_server.device_sampling import (
    _REASONS,
    HOST_SAMPLING_EXPORT,
    check_on_device,
    device_sampling,
    refused,
)
from neuron_server.errors import ValidationError
from neuron_server.request import SamplingParams
from neuron_server.shape import StaticShape

LOGITS = BackendInfo(StaticShape(4, 24), max_prompt_tokens=10, vocab_size=500)
TOKENS = BackendInfo(StaticShape(4, 24), 10, 500, output="tokens", max_top_k=256)


def drawn(**params: float) -> SamplingParams:
    return SamplingParams(do_sample=True, **params)


@pytest.mark.group(14)
@pytest.mark.parametrize(
    ("params", "row"),
    [
        (SamplingParams(), (1, 1.0, 1.0)),
        (SamplingParams(temperature=0.5, top_k=9, top_p=0.5, typical_p=0.5, seed=7), (1, 1.0, 1.0)),
        (drawn(), (256, 1.0, 1.0)),
        (drawn(temperature=0.7), (256, 1.0, 0.7)),
        (drawn(temperature=50.0, seed=2**64 - 1), (256, 1.0, 50.0)),
        (drawn(top_k=1), (1, 1.0, 1.0)),
        (drawn(top_k=256, temperature=1.5), (256, 1.0, 1.5)),
        (
            drawn(repetition_penalty=1.0, frequency_penalty=0.0, typical_p=1.0, top_n_tokens=0),
            (256, 1.0, 1.0),
        ),
        (drawn(frequency_penalty=-0.0), (256, 1.0, 1.0)),
    ],
)
def test_parameters_become_the_row_of_the_table(params: SamplingParams, row: tuple[float, ...]) -> None:
    assert device_sampling(params, 256) == DeviceSampling(*row)


@pytest.mark.group(14)
def test_no_top_k_is_the_widest_that_the_device_has() -> None:
    assert device_sampling(drawn(), 64).top_k == 64


@pytest.mark.group(14)
def test_top_p_goes_to_the_device_only_when_its_difference_was_accepted() -> None:
    assert device_sampling(drawn(top_p=0.9), 256, approximate_top_p=True) == DeviceSampling(256, 0.9, 1.0)
    with pytest.raises(ValidationError, match=r"`top_p` is 0\.9, .* crosses the threshold") as caught:
        device_sampling(drawn(top_p=0.9), 256)
    assert "--approximate-top-p" in str(caught.value)
    assert HOST_SAMPLING_EXPORT in str(caught.value)


@pytest.mark.parametrize(
    ("temperature", "row"),
    [(1e-45, GREEDY), (1e-300, GREEDY), (1e300, DeviceSampling(256, 1.0, 3.4028234663852886e38))],
)
def test_a_temperature_that_float32_cannot_hold_does_not_become_nan(
    temperature: float, row: DeviceSampling
) -> None:
    assert device_sampling(drawn(temperature=temperature), 256) == row


def test_a_top_p_that_float32_cannot_hold_still_keeps_the_likeliest_token() -> None:
    assert device_sampling(drawn(top_p=1e-300), 256, approximate_top_p=True).top_p == 2.0**-126


@pytest.mark.group(16)
@pytest.mark.parametrize("do_sample", [False, True])
@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("repetition_penalty", 1.2000000476837158, "1.2"),
        ("repetition_penalty", 0.5, "0.5"),
        ("frequency_penalty", -2.0, "-2"),
        ("frequency_penalty", math.nan, "nan"),
        ("top_n_tokens", 5, "5"),
    ],
)
def test_what_needs_logits_is_refused_by_name_also_when_greedy(
    do_sample: bool, name: str, value: float, shown: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        device_sampling(SamplingParams(do_sample=do_sample, **{name: value}), 256)
    assert str(caught.value).startswith(f"`{name}` is {shown}, but this model samples on the device")
    assert HOST_SAMPLING_EXPORT in str(caught.value)


@pytest.mark.group(16)
def test_warpers_that_the_device_lacks_are_refused_when_they_would_count() -> None:
    with pytest.raises(ValidationError, match=r"`typical_p` is 0\.5, .* no typical sampling"):
        device_sampling(drawn(typical_p=0.5), 256, approximate_top_p=True)
    with pytest.raises(ValidationError, match=r"`top_k` is 257, .* 256 candidates.* Choose at most 256"):
        device_sampling(drawn(top_k=257), 256)


@pytest.mark.group(16)
def test_a_heat_in_which_the_devices_top_k_melts_is_refused_beside_one() -> None:
    assert device_sampling(drawn(top_k=5, temperature=100.0), 256) == DeviceSampling(5, 1.0, 100.0)
    with pytest.raises(ValidationError, match=r"`temperature` is 101, .* top_k .* Choose at most 100"):
        device_sampling(drawn(top_k=5, temperature=101.0), 256)
    for params in (drawn(temperature=101.0), drawn(top_k=256, temperature=101.0)):  # nothing is masked
        assert device_sampling(params, 256) == DeviceSampling(256, 1.0, 101.0)
    assert device_sampling(drawn(top_k=1, temperature=101.0), 256) == GREEDY


@pytest.mark.group(16)
@pytest.mark.parametrize(
    ("name", "value", "start"),
    [
        ("seed", 42, "`seed` is 42, but"),
        ("best_of", 2, "`best_of` is 2, but"),
        ("logprobs", True, "`logprobs` is true, but"),
        ("grammar", "json_schema", "`grammar` is json_schema, but"),
        ("decoder_input_details", True, "`decoder_input_details` is true, but"),
    ],
)
def test_what_else_a_request_asks_for_is_refused_only_by_a_device_that_samples(
    name: str, value: object, start: str
) -> None:
    check_on_device(drawn(), LOGITS, {name: value})
    with pytest.raises(ValidationError) as caught:
        check_on_device(drawn(), TOKENS, {name: value})
    assert str(caught.value).startswith(start)
    assert str(caught.value) == str(refused(name, value))


@pytest.mark.group(16)
def test_a_backend_with_logits_takes_everything() -> None:
    params = drawn(top_p=0.5, typical_p=0.5, top_k=400, repetition_penalty=2.0, top_n_tokens=5)
    check_on_device(params, LOGITS)
    with pytest.raises(ValidationError, match="repetition_penalty"):
        check_on_device(params, TOKENS, approximate_top_p=True)


@pytest.mark.group(16)
def test_the_documentation_tells_of_everything_that_is_refused() -> None:
    text = (Path(__file__).parents[1] / "docs" / "on-device-sampling.md").read_text()
    rows = {line.split("`")[1] for line in text.splitlines() if line.startswith("| `")}
    internal = {"prompt_logprobs"}  # the generator's word for decoder_input_details
    assert _REASONS.keys() - internal <= rows
    assert {"top_k", "top_p"} <= rows
