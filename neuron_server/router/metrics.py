"""Prometheus metrics with TGI's names, so that its dashboards work, and its way of writing them.

TGI's exporter differs from the Python client's in three ways that scrapers see: counters have no ``_total``,
nothing has ``_created``, and a family appears with its first update. Hence the small writer here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.samples import Sample

from neuron_server.config import RouterConfig
from neuron_server.errors import NeuronTgiError
from neuron_server.router.answer import Ending
from neuron_server.router.errors import failure_label

#: Bounds of every duration histogram, in seconds: 0.00015 .. 145.61.
_DURATIONS = [0.0001 * 1.5**k for k in range(1, 36)]


class Metrics:
    """All metrics of one router, in a registry of their own."""

    def __init__(self, config: RouterConfig) -> None:
        registry = self._registry = CollectorRegistry()
        inputs = [config.max_input_tokens / 100 * k for k in range(1, 101)]
        totals = [config.max_total_tokens / 100 * k for k in range(1, 101)]

        def histogram(name: str, text: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(name, text, buckets=buckets, registry=registry)

        self.count = Counter("tgi_request_count", "Requests", registry=registry)
        self.success = Counter("tgi_request_success", "Requests answered", registry=registry)
        self.failure = Counter(
            "tgi_request_failure", "Requests refused or failed", ["err"], registry=registry
        )
        self.duration = histogram("tgi_request_duration", "Seconds in all", _DURATIONS)
        self.validation = histogram("tgi_request_validation_duration", "Seconds validating", _DURATIONS)
        self.queue = histogram("tgi_request_queue_duration", "Seconds waiting for a slot", _DURATIONS)
        self.inference = histogram("tgi_request_inference_duration", "Seconds in a slot", _DURATIONS)
        self.per_token = histogram(
            "tgi_request_mean_time_per_token_duration", "Seconds per generated token", _DURATIONS
        )
        self.generated_tokens = histogram("tgi_request_generated_tokens", "Tokens generated", totals)
        self.input_length = histogram("tgi_request_input_length", "Prompt tokens", inputs)
        self.max_new_tokens = histogram("tgi_request_max_new_tokens", "New tokens allowed", totals)
        self._queue_size = Gauge("tgi_queue_size", "Requests that wait for a slot", registry=registry)
        self._batch_size = Gauge("tgi_batch_current_size", "Occupied slots", registry=registry)
        self._gauges_known = False

    def succeeded(self, ending: Ending) -> None:
        """One generation was answered."""
        total_s, validation_s, queue_s, inference_s = ending.timings
        self.success.inc()
        self.duration.observe(total_s)
        self.validation.observe(validation_s)
        self.queue.observe(queue_s)
        self.inference.observe(inference_s)
        self.per_token.observe(ending.time_per_token_s)
        self.generated_tokens.observe(ending.generated_tokens)

    def failed(self, error: NeuronTgiError) -> None:
        """One generation was refused or failed, for a reason that TGI counts."""
        label = failure_label(error)
        if label is not None:
            self.failure.labels(label).inc()

    def occupancy(self, queued: int, running: int) -> None:
        """What the generators said last; read when somebody scrapes."""
        self._queue_size.set(queued)
        self._batch_size.set(running)
        self._gauges_known = True

    def render(self) -> bytes:
        """The exposition text."""
        lines: list[str] = []
        for family in self._registry.collect():
            if self._touched(family):
                lines += _family(family)
        return "".join(f"{line}\n" for line in lines).encode()

    def _touched(self, family: Metric) -> bool:
        if family.type == "gauge":
            return self._gauges_known
        return any(s.value for s in family.samples if not s.name.endswith(("_created", "_bucket", "_sum")))


def _family(family: Metric) -> Iterator[str]:
    yield f"# HELP {family.name} {family.documentation}"
    yield f"# TYPE {family.name} {family.type}"
    for sample in family.samples:
        if not sample.name.endswith("_created"):
            yield _line(sample)
    yield ""


def _line(sample: Sample) -> str:
    labels = dict(sample.labels)
    if (bound := labels.get("le")) is not None:
        labels["le"] = _number(float(bound))
    shown = ",".join(f'{name}="{value}"' for name, value in labels.items())
    name = sample.name.removesuffix("_total")
    return f"{name}{{{shown}}} {_number(sample.value)}" if shown else f"{name} {_number(sample.value)}"


def _number(value: float) -> str:
    """The shortest decimal that reads back, without a fraction where there is none."""
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return repr(float(value)).removesuffix(".0")
