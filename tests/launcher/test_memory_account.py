from __future__ import annotations

import dataclasses

import pytest
from planning import facts

from launcher.device.instances import CORE_BYTES
from launcher.host import Host
from launcher.memory_account import Need, on_cores, on_processor, size
from neuron_server.errors import ConfigError
from neuron_server.shape import StaticShape

#: 2 layers x 2 KV heads x 8 x (k and v) x 4 bytes: 256 bytes for each token.
SHAPE = StaticShape(4, 1024)
CACHE = 2**20


def need(weight_bytes: int | None = 1000, replicas: int = 1, *, batch: int = 4, length: int = 1024) -> Need:
    return Need(facts(), StaticShape(batch, length), "float32", weight_bytes, replicas)


def test_each_replica_on_the_processor_has_weights_and_a_cache():
    sizes = on_processor(need(replicas=3), Host(available_bytes=2**30)).sizes
    assert sizes == {
        "weights in memory (all replicas)": 3000,
        "KV cache (all replicas)": 3 * CACHE,
        "memory available": 2**30,
    }


def test_a_core_holds_its_part_of_one_replica():
    assert need().cache == CACHE
    account = on_cores(need(1001, replicas=3), 2, Host())
    assert account.sizes == {
        "weights per core": 501,
        "KV cache per core": CACHE // 2,
        "memory of a core": CORE_BYTES,
    }
    assert account.warnings == ()


def test_more_cores_than_heads_copy_them():
    assert on_cores(need(), 8, Host()).sizes["KV cache per core"] == CACHE // 2
    three = dataclasses.replace(need(), facts=dataclasses.replace(facts(), kv_heads=3))
    assert on_cores(three, 2, Host()).sizes["KV cache per core"] == CACHE  # two of three heads


def test_heads_that_fit_no_degree_are_cached_as_the_planner_says():
    """9 heads of which 3 are cached, on 2 cores: optimum-neuron pads to 10 and caches all of them."""
    nine = dataclasses.replace(need(), facts=dataclasses.replace(facts(), heads=9, kv_heads=3))
    assert on_cores(nine, 2, Host()).sizes["KV cache per core"] == CACHE // 2 * 5


def test_a_cache_that_no_core_can_hold_is_refused():
    with pytest.raises(ConfigError) as caught:
        on_cores(need(batch=4096, length=32768), 1, Host())
    assert caught.value.rule == "memory"
    for part in ("--max-batch-size 4096", "--num-shard 1", "KV cache 32.0 GiB", "a core has 14.9 GiB"):
        assert part in str(caught.value)
    assert on_cores(need(batch=2048, length=32768), 2, Host()).warnings == ()


def test_weights_that_do_not_fit_only_warn_because_files_may_hold_more_than_is_loaded():
    (warning,) = on_cores(need(40 * 10**9), 2, Host()).warnings
    assert "loading is expected to fail" in warning
    assert on_cores(need(40 * 10**9), 4, Host()).warnings == ()
    assert on_cores(need(None), 1, Host()).warnings == ()


def test_weights_pass_through_the_host_s_memory():
    (warning,) = on_cores(need(3 * 2**30, replicas=2), 2, Host(available_bytes=4 * 2**30)).warnings
    assert "2 replica(s), 6.0 GiB" in warning
    assert on_cores(need(3 * 2**30), 2, Host(available_bytes=4 * 2**30)).warnings == ()


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, "unknown"), (0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (2**40, "1024.0 GiB")],
)
def test_sizes_are_said_for_people(count, text):
    assert size(count) == text
