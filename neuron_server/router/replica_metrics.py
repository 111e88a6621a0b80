"""What one can see of each replica: whether it serves, and how full it is."""

from __future__ import annotations

from collections.abc import Sequence

from neuron_server.router.exposition import Registry
from neuron_server.router.replicas import ReplicaState


class ReplicaMetrics:
    """Gauges by rank; told when somebody scrapes. ``docs/metrics.md`` says what they mean."""

    def __init__(self, registry: Registry, replicas: int) -> None:
        self._up = registry.gauges("neuronx_tgi_replica_up", "1: takes requests and answers", "replica")
        self._free_slots = registry.gauges(
            "neuronx_tgi_replica_free_slots", "Slots without a request", "replica"
        )
        self._queued = registry.gauges(
            "neuronx_tgi_replica_queued", "Requests that wait for a slot of this one", "replica"
        )
        for rank in range(replicas):  # one that never comes up is 0, not absent: absence raises no alarm
            self._up.labels(str(rank)).set(0)

    def states(self, states: Sequence[ReplicaState]) -> None:
        """How the replicas are now."""
        for state in states:
            rank = str(state.rank)
            self._up.labels(rank).set(state.up)
            self._free_slots.labels(rank).set(state.free_slots)
            self._queued.labels(rank).set(state.queued)
