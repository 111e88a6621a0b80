"""All metrics of one router: TGI's, by name, type, labels, buckets and moment, and ours beside them."""

from __future__ import annotations

from neuron_server.config import RouterConfig
from neuron_server.errors import NeuronTgiError
from neuron_server.router.answer import Ending
from neuron_server.router.batch_metrics import DURATIONS, BatchMetrics
from neuron_server.router.errors import failure_label
from neuron_server.router.exposition import Registry
from neuron_server.router.identity import version
from neuron_server.router.replica_metrics import ReplicaMetrics


class Metrics:
    """Requests here, batches in ``batch``; ``docs/metrics.md`` has the list."""

    def __init__(self, config: RouterConfig) -> None:
        self.registry = registry = Registry()
        inputs = [config.max_input_tokens / 100 * k for k in range(1, 101)]
        totals = [config.max_total_tokens / 100 * k for k in range(1, 101)]
        self.count = registry.counter("tgi_request_count", "Requests")
        self.success = registry.counter("tgi_request_success", "Requests answered")
        self.failure = registry.counters("tgi_request_failure", "Requests refused or failed", "err")
        self._duration = registry.histogram("tgi_request_duration", "Seconds in all", DURATIONS)
        self._validation = registry.histogram(
            "tgi_request_validation_duration", "Seconds validating", DURATIONS
        )
        self._queue = registry.histogram(
            "tgi_request_queue_duration", "Seconds waiting for a slot", DURATIONS
        )
        self._inference = registry.histogram("tgi_request_inference_duration", "Seconds in a slot", DURATIONS)
        self._per_token = registry.histogram(
            "tgi_request_mean_time_per_token_duration", "Seconds per generated token", DURATIONS
        )
        self._generated_tokens = registry.histogram(
            "tgi_request_generated_tokens", "Tokens generated", totals
        )
        self.input_length = registry.histogram("tgi_request_input_length", "Prompt tokens", inputs)
        self.max_new_tokens = registry.histogram("tgi_request_max_new_tokens", "New tokens allowed", totals)
        self._skipped = registry.histogram("tgi_request_skipped_tokens", "Speculated tokens per step", [0.0])
        self._add_ours(registry)
        self.replicas = ReplicaMetrics(registry, len(config.shard_uds_paths))
        self.batch = BatchMetrics(registry, config.batch_size, config.max_total_tokens)

    def _add_ours(self, registry: Registry) -> None:
        self._first_token = registry.histogram(
            "neuronx_tgi_time_to_first_token_seconds",
            "Seconds from the request to its first token",
            DURATIONS,
        )
        self._next_token = registry.histogram(
            "neuronx_tgi_inter_token_latency_seconds", "Seconds between two tokens of a request", DURATIONS
        )
        self.generator_losses = registry.counter(
            "neuronx_tgi_generator_losses", "Connections to a generator that broke"
        )
        self.resubmissions = registry.counter(
            "neuronx_tgi_resubmissions", "Requests given to another generator, or to the restarted one"
        )
        build = registry.gauges("neuronx_tgi_build_info", "1; the version is the label", "version")
        build.labels(version()).set(1)

    def first_token(self, seconds: float) -> None:
        """A generation's first token arrived, so long after its handler began."""
        self._first_token.observe(seconds)
        self._skipped.observe(0.0)

    def next_token(self, seconds: float) -> None:
        """A further token arrived, so long after the one before it."""
        self._next_token.observe(seconds)
        self._skipped.observe(0.0)

    def succeeded(self, ending: Ending) -> None:
        """One generation was answered."""
        total_s, validation_s, queue_s, inference_s = ending.timings
        self.success.inc()
        self._duration.observe(total_s)
        self._validation.observe(validation_s)
        self._queue.observe(queue_s)
        self._inference.observe(inference_s)
        self._per_token.observe(ending.time_per_token_s)
        self._generated_tokens.observe(ending.generated_tokens)

    def failed(self, error: NeuronTgiError) -> None:
        """One generation was refused or failed, for a reason that TGI counts."""
        label = failure_label(error)
        if label is not None:
            self.failure.labels(label).inc()

    def render(self) -> bytes:
        """The exposition text."""
        return self.registry.render()
