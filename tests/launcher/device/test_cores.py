from __future__ import annotations

import time

import pytest

from launcher.device.cores import (
    CoreRange,
    available,
    parse_number_of_cores,
    parse_visible_cores,
    replica_ranges,
    warn_degree,
)
from neuron_server.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "first", "count"),
    [
        ("4", 4, 1),
        ("0-7", 0, 8),
        ("7-15", 7, 9),
        ("3-3", 3, 1),
        ("0,1,2", 0, 3),
        ("0,1,2,3", 0, 4),
        ("0-1,2-3", 0, 4),
        ("4,5-7,8", 4, 5),
        (" 0 - 1 , 2 ", 0, 3),
        ("00,01", 0, 2),
        ("23", 23, 1),
    ],
)
@pytest.mark.group(22)
def test_every_form_of_visible_cores_is_counted(text, first, count):
    assert parse_visible_cores(text) == CoreRange(first, count)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("", "unset it"),
        ("   ", "unset it"),
        (",", "''"),
        ("0,", "''"),
        ("0,,1", "''"),
        ("0,2", "gap between 0 and 2"),
        ("0-1,4-5", "such as 0-3"),
        ("7-0", "write 0-7"),
        ("3,2,1", "write 1-3"),
        ("9,2", "does not ascend"),
        ("0,0", "names a core twice: write 0"),
        ("0-3,2-5", "names a core twice: write 0-5"),
        ("all", "'all' is none of these"),
        ("-1", "'-1' is none of these"),
        ("0--1", "none of these"),
        ("1.5", "none of these"),
        ("0x1", "none of these"),
        ("0..3", "none of these"),
        ("0:3", "none of these"),
        ("١", "none of these"),
        ("0\x00", "none of these"),
        ("99999999999999999999", "none of these"),
        ("0-999999", "0-23"),
        ("0-4096", "0-23"),
    ],
)
@pytest.mark.group(22)
def test_anything_else_is_refused_with_what_would_be_right(text, right):
    with pytest.raises(ConfigError) as caught:
        parse_visible_cores(text)
    assert caught.value.rule == "neuron_cores"
    assert str(caught.value).startswith("NEURON_RT_VISIBLE_CORES is ")
    assert right in str(caught.value)


@pytest.mark.parametrize("text", ["1" * 100_000, "0," * 9_999, "0-4095," * 2_000 + "0", "-" * 20_000])
@pytest.mark.group(22)
def test_a_huge_value_is_refused_at_once_and_shown_in_part(text):
    started = time.perf_counter()
    with pytest.raises(ConfigError) as caught:
        parse_visible_cores(text)
    assert len(str(caught.value)) < 400
    assert time.perf_counter() - started < 1


@pytest.mark.group(22)
def test_a_range_is_written_as_the_runtime_reads_it():
    for cores in (CoreRange(4, 1), CoreRange(0, 8), CoreRange(16, 8)):
        assert parse_visible_cores(str(cores)) == cores
    assert (str(CoreRange(4, 1)), str(CoreRange(0, 8))) == ("4", "0-7")


@pytest.mark.parametrize(("text", "cores"), [("0", None), ("1", 1), (" 12 ", 12), ("00", None)])
@pytest.mark.group(22)
def test_a_number_of_cores_of_0_means_all(text, cores):
    assert parse_number_of_cores(text) == cores


@pytest.mark.parametrize("text", ["", "-1", "two", "1.0", "0-3", "9" * 5000, "२"])
@pytest.mark.group(22)
def test_a_number_of_cores_that_is_none_is_refused(text):
    with pytest.raises(ConfigError, match=r"^NEURON_RT_NUM_CORES is .* must be a number of cores") as caught:
        parse_number_of_cores(text)
    assert caught.value.rule == "neuron_cores"
    assert len(str(caught.value)) < 300


@pytest.mark.group(22)
def test_all_cores_are_available_where_nothing_is_set():
    assert available(24, {}) == CoreRange(0, 24)


@pytest.mark.group(22)
def test_a_number_of_cores_takes_the_first_ones_and_never_more_than_there_are():
    assert available(24, {"NEURON_RT_NUM_CORES": "8"}) == CoreRange(0, 8)
    assert available(2, {"NEURON_RT_NUM_CORES": "8"}) == CoreRange(0, 2)
    assert available(2, {"NEURON_RT_NUM_CORES": "0"}) == CoreRange(0, 2)


@pytest.mark.group(22)
def test_visible_cores_beat_their_number():
    environ = {"NEURON_RT_VISIBLE_CORES": "8-15", "NEURON_RT_NUM_CORES": "nonsense"}
    assert available(24, environ) == CoreRange(8, 8)


@pytest.mark.group(22)
def test_visible_cores_that_are_not_there_are_refused():
    with pytest.raises(ConfigError, match=r"'0-7', but only 2 cores .* some of 0-1") as caught:
        available(2, {"NEURON_RT_VISIBLE_CORES": "0-7"})
    assert caught.value.rule == "neuron_cores"


@pytest.mark.group(23)
def test_a_machine_without_cores_has_none_to_share_out():
    with pytest.raises(ValueError, match="0 cores"):
        available(0, {})


@pytest.mark.group(23)
def test_replicas_get_consecutive_cores():
    assert [str(r) for r in replica_ranges(CoreRange(0, 24), 8, 3)] == ["0-7", "8-15", "16-23"]
    assert [str(r) for r in replica_ranges(CoreRange(0, 2), 1, 2)] == ["0", "1"]


@pytest.mark.group(23)
def test_replicas_share_the_range_that_was_given_to_us():
    assert [str(r) for r in replica_ranges(CoreRange(8, 8), 4, 2)] == ["8-11", "12-15"]
    assert [str(r) for r in replica_ranges(CoreRange(8, 9), 4, 2)] == ["8-11", "12-15"]


@pytest.mark.parametrize(
    ("cores", "tensor_parallel", "replicas", "would_fit"),
    [
        (
            CoreRange(0, 24),
            8,
            4,
            "need 32 NeuronCores, but 24 can be used (0-23): set --data-parallel",
        ),
        (CoreRange(0, 2), 8, 1, "need 8 NeuronCores, but 2 can be used (0-1): one replica spans at most 2"),
        (CoreRange(0, 12), 24, 1, "at most 8 here"),
        (CoreRange(3, 1), 2, 1, "can be used (3): one replica spans at most 1"),
        (CoreRange(0, 24), 10**30, 10**30, "can be used (0-23)"),
    ],
)
@pytest.mark.group(23)
def test_too_few_cores_say_how_many_and_what_would_fit(cores, tensor_parallel, replicas, would_fit):
    with pytest.raises(ConfigError) as caught:
        replica_ranges(cores, tensor_parallel, replicas)
    assert caught.value.rule == "neuron_cores"
    assert would_fit in str(caught.value)


@pytest.mark.parametrize(("tensor_parallel", "replicas"), [(0, 1), (1, 0), (-2, 1), (8, -1)])
@pytest.mark.group(23)
def test_no_cores_or_no_replicas_are_refused(tensor_parallel, replicas):
    with pytest.raises(ConfigError, match="at least 1"):
        replica_ranges(CoreRange(0, 24), tensor_parallel, replicas)


@pytest.mark.parametrize("degree", [1, 2, 4, 8, 24])
@pytest.mark.group(23)
def test_a_documented_degree_warns_of_nothing_on_inf2(degree):
    assert warn_degree(degree) is None
    assert warn_degree(degree, "inf2.48xlarge") is None


@pytest.mark.parametrize("degree", [3, 6, 10, 12, 16, 32])
@pytest.mark.group(23)
def test_another_degree_warns_on_inf2_with_those_there_are(degree):
    for instance in (None, "inf2.48xlarge"):
        warning = warn_degree(degree, instance)
        assert warning is not None
        assert f"--num-shard is {degree}," in warning
        assert "1, 2, 4, 8 and 24" in warning


@pytest.mark.group(23)
def test_trainium_has_degrees_of_its_own():
    assert warn_degree(32, "trn1.32xlarge") is None
    assert warn_degree(64, "trn1n.32xlarge") is None
    assert "1, 2, 8, 16" in (warn_degree(4, "trn1.32xlarge") or "")
    assert warn_degree(4, "trn2.48xlarge") is None
