"""What the generators' batches do: TGI's ``tgi_batch_*`` and ``tgi_queue_size``, and a static batch's own.

``docs/metrics.md`` says what each of them means here, and which of TGI's a static batch cannot have.
"""

from __future__ import annotations

from collections.abc import Sequence

from neuron_server.router.exposition import Registry
from neuron_server.session import Pass

#: Bounds of every histogram of durations, in seconds: 0.00015 .. 145.61, as TGI's.
DURATIONS = tuple(0.0001 * 1.5**k for k in range(1, 36))

#: TGI's bounds for sizes of batches.
_SIZES = tuple(float(1 << k) for k in range(11))


class BatchMetrics:
    """Fed with the passes that the generators tell of, and with their occupancy whenever somebody scrapes."""

    def __init__(self, registry: Registry, batch_size: int, max_total_tokens: int) -> None:
        self._slot_tokens = max_total_tokens
        self._add_tgis(registry)
        self._add_ours(registry, batch_size)

    def _add_tgis(self, registry: Registry) -> None:
        self._queue_size = registry.gauge("tgi_queue_size", "Requests that wait for a slot")
        self._next_size = registry.histogram("tgi_batch_next_size", "Requests that joined by a pass", _SIZES)
        self._size = registry.gauge("tgi_batch_current_size", "Occupied slots")
        self._max_tokens = registry.gauge(
            "tgi_batch_current_max_tokens", "Tokens the occupied slots can hold"
        )
        self._count = registry.counters("tgi_batch_inference_count", "Passes", "method")
        self._success = registry.counters("tgi_batch_inference_success", "Passes that made tokens", "method")
        self._failure = registry.counters("tgi_batch_inference_failure", "Passes that failed", "method")
        self._durations = {
            part: registry.histograms(f"tgi_batch_{part}_duration", text, DURATIONS, "method")
            for part, text in (
                ("inference", "Seconds of a pass with its sampling and delivery"),
                ("forward", "Seconds in the model"),
                ("decode", "Seconds choosing the tokens"),
                ("filter", "Seconds handing the tokens to their requests"),
            )
        }
        self._concat = registry.counters(
            "tgi_batch_concat", "Groups of requests that joined running ones", "reason"
        )

    def _add_ours(self, registry: Registry, batch_size: int) -> None:
        self._slots = registry.gauge("neuronx_tgi_slots", "Slots of all generators that are there")
        self._free_slots = registry.gauge("neuronx_tgi_free_slots", "Slots without a request")
        self._occupancy = registry.gauge("neuronx_tgi_slot_occupancy", "Occupied part of the slots, 0 to 1")
        # 16 steps up to B, so that "how full" reads the same for every batch size
        rows = sorted({-(-batch_size * k // 16) for k in range(1, 17)})
        self._rows = registry.histogram("neuronx_tgi_decode_rows", "Rows that took part in a decode", rows)
        self._stall = registry.histogram(
            "neuronx_tgi_prefill_stall_seconds", "Seconds of a prefill while requests were running", DURATIONS
        )
        self._stalled = registry.counter(
            "neuronx_tgi_prefill_stalled_requests", "Running requests that stood still, once per prefill"
        )
        self._positions = registry.counters(
            "neuronx_tgi_computed_positions", "Token positions computed, padding included", "method"
        )
        self._padding = registry.counters(
            "neuronx_tgi_padding_positions", "Token positions computed for no token", "method"
        )

    def passes(self, passes: Sequence[Pass], delivery_s: float) -> None:
        """The passes of one message, and the seconds that handing its tokens on took.

        The tokens of several passes may be one message; each pass is then given an equal part of the time.
        """
        for one in passes:
            self._count.labels(one.method).inc()
            if one.failed:
                self._failure.labels(one.method).inc()
            else:
                self._success.labels(one.method).inc()
                self._passed(one, delivery_s / len(passes))

    def _passed(self, one: Pass, delivery_s: float) -> None:
        method, durations = one.method, self._durations
        durations["inference"].labels(method).observe(one.forward_s + one.sampling_s + delivery_s)
        durations["forward"].labels(method).observe(one.forward_s)
        durations["decode"].labels(method).observe(one.sampling_s)
        durations["filter"].labels(method).observe(delivery_s)
        if one.joined:
            self._next_size.observe(one.joined)
        if one.concat:
            self._concat.labels(one.concat).inc()
        if method == "decode":
            self._rows.observe(one.rows)
        elif one.stalled:
            self._stall.observe(one.forward_s + one.sampling_s)
            self._stalled.inc(one.stalled)
        if one.positions:
            self._positions.labels(method).inc(one.positions)
            self._padding.labels(method).inc(max(one.positions - one.tokens, 0))

    def occupancy(self, *, queued: int, running: int, free_slots: int) -> None:
        """What the generators said last; told when somebody scrapes."""
        slots = running + free_slots
        self._queue_size.set(queued)
        self._size.set(running)
        self._max_tokens.set(running * self._slot_tokens)
        self._slots.set(slots)
        self._free_slots.set(free_slots)
        self._occupancy.set(running / slots if slots else 0)
