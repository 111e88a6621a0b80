from __future__ import annotations

from neuron_server.router.exposition import Registry
from neuron_server.router.replica_metrics import ReplicaMetrics
from neuron_server.router.replicas import ReplicaState


def samples(registry: Registry) -> list[str]:
    return [line for line in registry.render().decode().splitlines() if line and line[0] != "#"]


def test_a_replica_that_never_came_up_is_down_rather_than_absent():
    registry = Registry()
    ReplicaMetrics(registry, 2)
    assert samples(registry) == [
        'neuronx_tgi_replica_up{replica="0"} 0',
        'neuronx_tgi_replica_up{replica="1"} 0',
    ]


def test_a_replica_is_up_while_it_takes_requests():
    registry = Registry()
    metrics = ReplicaMetrics(registry, 2)
    metrics.states([ReplicaState(0, "ready", 3, 1), ReplicaState(1, "not answering")])
    assert samples(registry) == [
        'neuronx_tgi_replica_up{replica="0"} 1',
        'neuronx_tgi_replica_up{replica="1"} 0',
        'neuronx_tgi_replica_free_slots{replica="0"} 3',
        'neuronx_tgi_replica_free_slots{replica="1"} 0',
        'neuronx_tgi_replica_queued{replica="0"} 1',
        'neuronx_tgi_replica_queued{replica="1"} 0',
    ]
    metrics.states([ReplicaState(0, "lost"), ReplicaState(1, "ready", 4, 0)])
    assert samples(registry)[:3] == [
        'neuronx_tgi_replica_up{replica="0"} 0',
        'neuronx_tgi_replica_up{replica="1"} 1',
        'neuronx_tgi_replica_free_slots{replica="0"} 0',
    ]
