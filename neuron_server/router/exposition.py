"""Counters, gauges and histograms, and Prometheus' text format as TGI's exporter writes it.

Not ``prometheus_client``, because that differs in what scrapers see: its counters end in ``_total``, it adds
``_created`` series, and its families exist before their first update. It also takes a lock and walks all
buckets for each observation, which this does once per token (0.7 us there, 0.2 us here). Everything
happens on the event loop's thread, so nothing needs a lock.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, Protocol, TypeVar

#: A sample: what follows the family's name, labels besides the family's own, and the value.
Sample = tuple[str, tuple[tuple[str, str], ...], float]


class Series(Protocol):
    """One combination of label values."""

    def samples(self) -> Iterator[Sample]:
        """What it has measured; nothing before its first update."""
        ...


class Counter:
    """Only grows."""

    __slots__ = ("_value",)

    def __init__(self) -> None:
        self._value: float | None = None

    def inc(self, by: float = 1) -> None:
        """Add ``by``, which is not negative; 0 makes the series appear."""
        self._value = (self._value or 0) + by

    def samples(self) -> Iterator[Sample]:
        """See ``Series``."""
        if self._value is not None:
            yield "", (), self._value


class Gauge:
    """What is the case now."""

    __slots__ = ("_value",)

    def __init__(self) -> None:
        self._value: float | None = None

    def set(self, value: float) -> None:
        """It is ``value`` now."""
        self._value = value

    def samples(self) -> Iterator[Sample]:
        """See ``Series``."""
        if self._value is not None:
            yield "", (), self._value


class Histogram:
    """How many observations were at most as large as each of ``bounds`` (ascending), and their sum."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = list(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """One observation."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def samples(self) -> Iterator[Sample]:
        """See ``Series``."""
        count = 0
        if any(self._counts):
            for bound, more in zip([*self._bounds, math.inf], self._counts, strict=True):
                count += more
                yield "_bucket", (("le", _number(bound)),), count
            yield "_sum", (), self._sum
            yield "_count", (), count


S = TypeVar("S", bound=Series)


class Family(Generic[S]):
    """All series of one name. ``kind`` is Prometheus' type."""

    def __init__(
        self, name: str, kind: str, text: str, label_names: tuple[str, ...], make: Callable[[], S]
    ) -> None:
        self.name = name
        self.kind = kind
        self.text = text
        self.label_names = label_names
        self._make = make
        self._series: dict[tuple[str, ...], S] = {}

    def labels(self, *values: str) -> S:
        """The series of these label values, in the order of ``label_names``."""
        series = self._series.get(values)
        if series is None:
            if len(values) != len(self.label_names):
                raise ValueError(f"{self.name} has the labels {self.label_names}, got values {values}")
            series = self._series[values] = self._make()
        return series

    def lines(self) -> Iterator[str]:
        """The family in text format; no line at all before its first update."""
        samples = [
            f"{self.name}{suffix}{_labels((*zip(self.label_names, values, strict=True), *more))} "
            f"{_number(value)}"
            for values, series in self._series.items()
            for suffix, more, value in series.samples()
        ]
        if samples:
            yield f"# HELP {self.name} {self.text}"
            yield f"# TYPE {self.name} {self.kind}"
            yield from samples
            yield ""


class Registry:
    """All families of one exposition. A name without label names is its only series."""

    def __init__(self) -> None:
        self.families: list[Family[Counter] | Family[Gauge] | Family[Histogram]] = []

    def counters(self, name: str, text: str, *label_names: str) -> Family[Counter]:
        """A family of counters."""
        family = Family(name, "counter", text, label_names, Counter)
        self.families.append(family)
        return family

    def gauges(self, name: str, text: str, *label_names: str) -> Family[Gauge]:
        """A family of gauges."""
        family = Family(name, "gauge", text, label_names, Gauge)
        self.families.append(family)
        return family

    def histograms(
        self, name: str, text: str, bounds: Sequence[float], *label_names: str
    ) -> Family[Histogram]:
        """A family of histograms."""
        family = Family(name, "histogram", text, label_names, lambda: Histogram(bounds))
        self.families.append(family)
        return family

    def counter(self, name: str, text: str) -> Counter:
        """A counter without labels."""
        return self.counters(name, text).labels()

    def gauge(self, name: str, text: str) -> Gauge:
        """A gauge without labels."""
        return self.gauges(name, text).labels()

    def histogram(self, name: str, text: str, bounds: Sequence[float]) -> Histogram:
        """A histogram without labels."""
        return self.histograms(name, text, bounds).labels()

    def render(self) -> bytes:
        """Every family that was ever updated."""
        return "".join(f"{line}\n" for family in self.families for line in family.lines()).encode()


def _labels(pairs: Sequence[tuple[str, str]]) -> str:
    shown = ",".join(f'{name}="{_escaped(value)}"' for name, value in pairs)
    return f"{{{shown}}}" if shown else ""


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    """The shortest decimal that reads back, without a fraction where there is none."""
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return repr(float(value)).removesuffix(".0")
