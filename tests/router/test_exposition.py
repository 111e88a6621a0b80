"""The text format, as TGI's exporter writes it."""

from __future__ import annotations

import math

import pytest
from prometheus_client.parser import text_string_to_metric_families

from neuron_server.router.exposition import Counter, Histogram, Registry


def lines(registry: Registry) -> list[str]:
    return registry.render().decode().splitlines()


def test_a_family_appears_with_its_first_update():
    registry = Registry()
    counter, gauge = registry.counter("c", "C"), registry.gauge("g", "G")
    histogram = registry.histogram("h", "H", [1.0])
    labelled = registry.counters("l", "L", "who")
    assert registry.render() == b""
    labelled.labels("me")
    assert registry.render() == b""
    counter.inc()
    assert lines(registry) == ["# HELP c C", "# TYPE c counter", "c 1", ""]
    gauge.set(0)
    histogram.observe(0)
    labelled.labels("me").inc(0)
    assert [line for line in lines(registry) if line.startswith("# TYPE")] == [
        "# TYPE c counter",
        "# TYPE g gauge",
        "# TYPE h histogram",
        "# TYPE l counter",
    ]
    assert "g 0" in lines(registry)
    assert 'l{who="me"} 0' in lines(registry)


def test_buckets_are_cumulative_and_their_bounds_inclusive():
    registry = Registry()
    histogram = registry.histogram("h", "H", [0.5, 1.0, 2.0])
    for value in (0.5, 1.0, 1.0, 1.5, 99.0):
        histogram.observe(value)
    assert lines(registry)[2:] == [
        'h_bucket{le="0.5"} 1',
        'h_bucket{le="1"} 3',
        'h_bucket{le="2"} 4',
        'h_bucket{le="+Inf"} 5',
        "h_sum 103",
        "h_count 5",
        "",
    ]


def test_labels_stand_before_le_and_are_escaped():
    registry = Registry()
    registry.histograms("h", "H", [1.0], "method").labels("decode").observe(1)
    registry.gauges("g", "G", "path").labels('a"b\\c\nd').set(1)
    assert 'h_bucket{method="decode",le="1"} 1' in lines(registry)
    assert r'g{path="a\"b\\c\nd"} 1' in lines(registry)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3"),
        (0.1, "0.1"),
        (0.0001 * 1.5, "0.00015000000000000001"),
        (math.inf, "+Inf"),
        (-math.inf, "-Inf"),
    ],
)
def test_numbers_are_the_shortest_that_read_back(value, text):
    registry = Registry()
    registry.gauge("g", "G").set(value)
    assert f"g {text}" in lines(registry)


def test_labels_must_be_as_many_as_were_declared():
    family = Registry().counters("l", "L", "who")
    with pytest.raises(ValueError, match=r"l has the labels \('who',\), got values \(\)"):
        family.labels()


def test_prometheus_reads_what_was_written():
    registry = Registry()
    registry.counters("failures", "F", "err").labels('a "quoted" one').inc(2)
    histogram = registry.histograms("h", "H", [0.1, 1.0], "method").labels("prefill")
    histogram.observe(0.3)
    families = {f.name: f for f in text_string_to_metric_families(registry.render().decode())}
    (failure,) = families["failures"].samples
    assert (failure.labels, failure.value) == ({"err": 'a "quoted" one'}, 2)
    assert families["h"].type == "histogram"
    assert [s.value for s in families["h"].samples if s.name == "h_bucket"] == [0, 1, 1]


def test_series_are_made_once():
    family = Registry().histograms("h", "H", [1.0], "method")
    assert family.labels("a") is family.labels("a")
    assert isinstance(family.labels("a"), Histogram)
    assert list(Counter().samples()) == []
