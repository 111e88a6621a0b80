"""What becomes of the passes and of the occupancy."""

from __future__ import annotations

import pytest

from neuron_server.router.batch_metrics import DURATIONS, BatchMetrics
from neuron_server.router.exposition import Registry
from neuron_server.session import Pass


class Batch:
    def __init__(self, batch_size: int = 4) -> None:
        self.registry = Registry()
        self.metrics = BatchMetrics(self.registry, batch_size, 2048)

    def told(self, *passes: Pass, delivery_s: float = 0.0) -> Batch:
        self.metrics.passes(passes, delivery_s)
        return self

    @property
    def samples(self) -> dict[str, float]:
        lines = self.registry.render().decode().splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, value in pairs}


def test_nothing_is_there_before_anything_happened():
    assert Batch().samples == {}


def test_a_pass_moves_tgis_metrics_of_its_method():
    samples = Batch().told(Pass("decode", 3, forward_s=0.5, sampling_s=0.25), delivery_s=0.125).samples
    for name, seconds in (("inference", 0.875), ("forward", 0.5), ("decode", 0.25), ("filter", 0.125)):
        assert samples[f'tgi_batch_{name}_duration_sum{{method="decode"}}'] == seconds
        assert samples[f'tgi_batch_{name}_duration_count{{method="decode"}}'] == 1
    assert samples['tgi_batch_inference_count{method="decode"}'] == 1
    assert samples['tgi_batch_inference_success{method="decode"}'] == 1
    assert not [name for name in samples if "prefill" in name or "failure" in name]
    assert not [name for name in samples if name.startswith(("tgi_batch_concat", "tgi_batch_next"))]


def test_the_delivery_of_one_message_is_shared_by_its_passes():
    batch = Batch().told(Pass("prefill", 1, joined=1), Pass("decode", 1), delivery_s=0.5)
    assert batch.samples['tgi_batch_filter_duration_sum{method="prefill"}'] == 0.25
    assert batch.samples['tgi_batch_filter_duration_sum{method="decode"}'] == 0.25


def test_a_failed_pass_is_counted_and_timed_nowhere():
    samples = Batch().told(Pass("prefill", 1, forward_s=2.0, stalled=3, failed=True)).samples
    assert samples == {
        'tgi_batch_inference_count{method="prefill"}': 1,
        'tgi_batch_inference_failure{method="prefill"}': 1,
    }


def test_a_group_that_joins_is_counted_once_with_its_reason():
    samples = (
        Batch()
        .told(Pass("prefill", 1, joined=1, stalled=2, concat="backpressure"), Pass("prefill", 1, joined=1))
        .told(Pass("decode", 4, joined=1, concat="wait_exceeded"))
        .samples
    )
    assert samples['tgi_batch_concat{reason="backpressure"}'] == 1
    assert samples['tgi_batch_concat{reason="wait_exceeded"}'] == 1
    assert samples["tgi_batch_next_size_count"] == 3


def test_a_prefill_that_others_waited_for_is_a_stall():
    alone = Pass("prefill", 1, joined=1, forward_s=1.0)
    samples = Batch().told(alone, Pass("prefill", 1, 1, 0.5, 0.25, stalled=3)).samples
    assert samples["neuronx_tgi_prefill_stall_seconds_sum"] == 0.75
    assert samples["neuronx_tgi_prefill_stall_seconds_count"] == 1
    assert samples["neuronx_tgi_prefill_stalled_requests"] == 3


def test_padding_is_what_was_computed_for_no_token():
    samples = (
        Batch()
        .told(Pass("prefill", 1, tokens=5, positions=20), Pass("decode", 3, tokens=3, positions=4))
        .samples
    )
    assert samples['neuronx_tgi_computed_positions{method="prefill"}'] == 20
    assert samples['neuronx_tgi_padding_positions{method="prefill"}'] == 15
    assert samples['neuronx_tgi_padding_positions{method="decode"}'] == 1


def test_a_backend_that_does_not_say_what_it_computes_has_no_padding_series():
    assert not [name for name in Batch().told(Pass("decode", 3, tokens=3)).samples if "positions" in name]


@pytest.mark.parametrize("batch_size", [1, 3, 16, 100])
def test_the_rows_of_a_decode_are_counted_in_steps_up_to_the_batch_size(batch_size):
    batch = Batch(batch_size).told(Pass("decode", 1), Pass("decode", batch_size))
    bounds = [
        name.split('"')[1] for name in batch.samples if name.startswith("neuronx_tgi_decode_rows_bucket")
    ]
    assert bounds[-2:] == [str(batch_size), "+Inf"]
    assert len(bounds) == min(batch_size, 16) + 1
    assert batch.samples["neuronx_tgi_decode_rows_sum"] == 1 + batch_size


def test_occupancy_is_of_all_generators():
    batch = Batch()
    batch.metrics.occupancy(queued=5, running=3, free_slots=1)
    assert batch.samples == {
        "tgi_queue_size": 5,
        "tgi_batch_current_size": 3,
        "tgi_batch_current_max_tokens": 3 * 2048,
        "neuronx_tgi_slots": 4,
        "neuronx_tgi_free_slots": 1,
        "neuronx_tgi_slot_occupancy": 0.75,
    }


def test_without_a_generator_there_are_no_slots_and_nothing_runs():
    batch = Batch()
    batch.metrics.occupancy(queued=5, running=3, free_slots=1)
    batch.metrics.occupancy(queued=2, running=0, free_slots=0)
    assert batch.samples["tgi_batch_current_size"] == batch.samples["neuronx_tgi_slots"] == 0
    assert batch.samples["neuronx_tgi_slot_occupancy"] == 0
    assert batch.samples["tgi_queue_size"] == 2


def test_the_bounds_of_durations_are_tgis():
    assert len(DURATIONS) == 35
    assert repr(DURATIONS[0]) == "0.00015000000000000001"
    assert round(DURATIONS[-1], 2) == 145.61
